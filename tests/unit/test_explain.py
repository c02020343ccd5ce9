"""What ``policy check`` says of a policy: what it means, how it compares, and what cannot be meant."""

from __future__ import annotations

import pytest

from orchestrator.cli import explain
from orchestrator.policy import Policy, profiles


def doubts(*settings: str, base: str = "default") -> list[str]:
    return explain.doubts(Policy.load(base).override(list(settings)))


@pytest.mark.parametrize("name", profiles())
def test_a_shipped_policy_leaves_no_doubt(name: str) -> None:
    assert doubts(base=name) == []


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["budget.depth=0"], "budget.children = 32 with budget.depth = 0"),
        (["budget.children=0"], "budget.depth = 1 with budget.children = 0"),
        (["budget.calls=20"], "budget.turns = 30 is more than budget.calls = 20"),
        (["budget.tokens=8191"], "models.max_tokens = 8,192 is more than budget.tokens = 8,191"),
        (["budget.cost_usd=0"], "budget.cost_usd = 0"),
        (["budget.wall_s=299"], "limits.cell_timeout_s = 300 is more than budget.wall_s = 299"),
        (["budget.wall_s=59", "limits.cell_timeout_s=9"], "limits.start_timeout_s = 60 is more than budget.wall_s"),
        (["limits.memory_mb=1151"], "limits.memory_mb = 1151 is less than 1152"),
        (["limits.answer_mb=2049"], "limits.answer_mb = 2049 is more than limits.memory_mb = 2048"),
        (["limits.output_kb=4"], "limits.observation_chars = 12,000 is more than what leaves the box"),
        (["models.in_flight=41", "budget.calls=40"], "models.in_flight = 41 is more than budget.calls = 40"),
        (["models.max_tokens=20000", "limits.frame_kb=64"], "limits.frame_kb = 64 is less than a reply of"),
        (["models.direct_below_chars=600_000_000"], "there will be no box"),
    ],
)
def test_what_cannot_be_meant_is_named(settings: list[str], named: str) -> None:
    found = doubts(*settings)
    assert [line for line in found if named in line], found


@pytest.mark.parametrize(
    "settings",
    [
        ["budget.depth=0", "budget.children=0"],
        ["budget.calls=30"],
        ["budget.tokens=8192"],
        ["budget.wall_s=300"],
        ["limits.memory_mb=1152"],
        ["limits.answer_mb=2048"],
        ["limits.output_kb=6"],
        ["models.in_flight=30", "budget.calls=30"],
        ["models.max_tokens=16384", "limits.frame_kb=64"],
        ["models.direct_below_chars=1000"],
    ],
)
def test_what_just_fits_is_not(settings: list[str]) -> None:
    assert doubts(*settings) == []


@pytest.mark.parametrize(
    ("setting", "direction"),
    [
        ("budget.calls=1999", "tighter"),
        ("budget.calls=2001", "looser"),
        ("limits.cpus=2", "looser"),
        ("limits.cell_timeout_s=1", "tighter"),
        ("sandbox.runtime=runsc", "tighter"),
        ("sandbox.runtime=crun", "other"),
        ("sandbox.user_namespace=true", "tighter"),
        ("sandbox.user=1000:1000", "other"),
        ("sandbox.image=mine", "other"),
        ("models.root=offline", "other"),
        ('models.allowed=["offline"]', "looser"),
        ("models.in_flight=17", "looser"),
        ("models.max_tokens=100", "tighter"),
        ("models.direct_below_chars=100", "other"),
        ("models.provider_in_flight=129", "looser"),
        ("models.requests_per_minute=60", "tighter"),
        ("models.tokens_per_minute=60", "tighter"),
        ("models.request_timeout_s=601", "looser"),
        ("models.price_caps={a=0.1}", "tighter"),
        ("models.memo=true", "other"),
        ("sandbox.uids=1", "looser"),
    ],
)
def test_each_difference_has_a_direction(setting: str, direction: str) -> None:
    (difference,) = explain.compare(Policy().override([setting]), Policy())
    assert (difference.key, difference.direction) == (setting.partition("=")[0], direction)
    (back,) = explain.compare(Policy(), Policy().override([setting]))
    assert back.direction == {"tighter": "looser", "looser": "tighter", "other": "other"}[direction]
    assert (back.value, back.other) == (difference.other, difference.value)


@pytest.mark.parametrize(
    ("mine", "its", "direction"),
    [("a=0.1", "a=0.2", "tighter"), ("a=0.2, b=0.1", "a=0.2", "tighter"), ("a=0.1", "b=0.1", "other")],
)
def test_caps_are_compared_model_by_model(mine: str, its: str, direction: str) -> None:
    one, two = (Policy().override([f"models.price_caps={{{caps}}}"]) for caps in (mine, its))
    assert [item.direction for item in explain.compare(one, two)] == [direction]


def test_sets_of_models_that_do_not_contain_one_another_are_just_others() -> None:
    mine, its = (Policy().override([f'models.allowed=["openai:{name}"]']) for name in "ab")
    assert [item.direction for item in explain.compare(mine, its)] == ["other"]


def test_the_same_policy_differs_in_nothing() -> None:
    assert explain.compare(Policy(), Policy.load("default")) == []


def text(*settings: str) -> str:
    return "\n".join(line for _, lines in explain.meaning(Policy().override(list(settings))) for line in lines)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], "lasts at most 30 min and 30 turns"),
        ([], "spends at most 2,000 calls, 20,000,000 tokens and 10.00 USD"),
        ([], "32 child runs, 1 level deep"),
        (["budget.depth=0"], "no child runs"),
        (["budget.wall_s=9000"], "2.5 h"),
        ([], "2 GiB of memory and no swap, 96 processes and threads, and 100% of a core"),
        ([], "under the engine's default runtime"),
        (["sandbox.runtime=runsc"], "must find gVisor's kernel"),
        (["models.root=offline", "models.sub=openai:x"], "asks openai:x in sub-calls"),
        (['models.allowed=["openai:x", "openai:y"]'], "openai:x, openai:y as well"),
        (["models.direct_below_chars=500"], "below 500 characters"),
        (["limits.frame_kb=512"], "512 KiB in a sub-call"),
        (["sandbox.image=mine\u202e\x1b[2J"], "from the image mine"),
    ],
)
def test_it_is_said_in_plain_words(settings: list[str], said: str) -> None:
    assert said in text(*settings)
    assert text(*settings).isprintable() or "\n" in text(*settings)
    assert "\x1b" not in text(*settings)
