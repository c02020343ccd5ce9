"""Policies: data that is checked, frozen, and only ever narrowed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from orchestrator import bundle
from orchestrator.errors import PolicyError
from orchestrator.policy import Budget, Limits, ModelSettings, Policy, SandboxSettings, profiles

TABLES: dict[str, type[BaseModel]] = {"budget": Budget, "limits": Limits, "models": ModelSettings}

budgets = st.builds(
    Budget,
    calls=st.integers(1, 10**6),
    depth=st.integers(0, 5),
    turns=st.integers(1, 100),
    wall_s=st.floats(0.1, 86400),
    tokens=st.integers(1, 10**9),
    cost_usd=st.floats(0, 1000),
    children=st.integers(0, 100),
)
boxes = st.builds(
    Limits,
    memory_mb=st.integers(128, 1 << 16),
    pids=st.integers(24, 4096),
    cpus=st.floats(0.1, 64),
    cell_timeout_s=st.floats(0.1, 3600),
    answer_mb=st.integers(1, 4096),
)
names = st.lists(st.sampled_from("abcd"), unique=True).map(tuple)
policies = st.builds(
    Policy,
    budget=budgets,
    limits=boxes,
    sandbox=st.builds(SandboxSettings, freeze_between_cells=st.booleans(), allow_subprocess=st.booleans()),
    models=st.builds(ModelSettings, max_tokens=st.integers(16, 10**5), in_flight=st.integers(1, 100), allowed=names),
)


def numbers(policy: Policy) -> dict[str, float]:
    data = policy.model_dump()
    narrowed = [("models", key) for key in ("max_tokens", "in_flight")]
    narrowed += [(table, key) for table in ("budget", "limits") for key in data[table]]
    return {f"{table}.{key}": data[table][key] for table, key in narrowed}


class TestProfiles:
    def test_every_shipped_profile_loads_and_names_every_key(self) -> None:
        assert {"default", "strict"} <= set(profiles())
        for name in profiles():
            policy = Policy.load(name)
            assert policy.name == name
            text = bundle.path(f"policies/{name}.toml").read_text("utf-8")
            for table in ("budget", "limits", "sandbox", "models"):
                keys = set(re.findall(r"(?m)^(\w+) = ", text.split(f"[{table}]")[1].split("\n[")[0]))
                assert keys == set(type(getattr(policy, table)).model_fields)

    def test_the_defaults_in_code_are_those_of_the_default_profile(self) -> None:
        assert Policy.load() == Policy()

    def test_strict_is_no_wider_than_the_default_in_anything(self) -> None:
        default, strict = numbers(Policy.load()), numbers(Policy.load("strict"))
        assert all(strict[key] <= default[key] for key in default)
        assert Policy.load().narrow(Policy.load("strict")).limits == Policy.load("strict").limits

    def test_strict_alone_freezes_its_boxes_and_starts_no_processes(self) -> None:
        found = {name: Policy.load(name).sandbox for name in profiles()}
        assert {name for name, box in found.items() if box.freeze_between_cells} == {"strict"}
        assert {name for name, box in found.items() if not box.allow_subprocess} == {"strict"}


class TestNarrow:
    @settings(max_examples=100)
    @given(mine=policies, other=policies)
    def test_nothing_grows_and_the_box_gets_no_weaker(self, mine: Policy, other: Policy) -> None:
        narrowed = mine.narrow(other)
        for key, value in numbers(narrowed).items():
            assert value == min(numbers(mine)[key], numbers(other)[key])
        assert set(narrowed.models.allowed) == set(mine.models.allowed) & set(other.models.allowed)
        assert narrowed.sandbox == mine.sandbox.model_copy(
            update={
                "freeze_between_cells": mine.sandbox.freeze_between_cells or other.sandbox.freeze_between_cells,
                "allow_subprocess": mine.sandbox.allow_subprocess and other.sandbox.allow_subprocess,
            }
        )
        assert narrowed.narrow(other) == narrowed

    def test_the_window_keeps_all_in_flight_busy(self) -> None:
        assert ModelSettings(in_flight=8).window == 16


class TestReading:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("[budget]\ncall = 5", "unknown key 'budget.call'.*calls"),
            ("[bugdet]\ncalls = 5", "unknown key 'bugdet'.*budget"),
            ("calls = 5", "unknown key 'calls'.*limits"),
            ("[budget]\ncalls = 0", "budget.calls = 0"),
            ("[budget]\ncalls = -1", "budget.calls = -1"),
            ("[budget]\ncalls = 1.5", "budget.calls = 1.5"),
            ('[budget]\ncalls = "5"', "budget.calls = '5'"),
            ("[budget]\ncalls = true", "budget.calls = True"),
            ("[budget]\nwall_s = nan", "budget.wall_s = nan"),
            ("[budget]\nwall_s = inf", "budget.wall_s = inf"),
            ("[budget]\ncost_usd = -0.1", "budget.cost_usd"),
            ("[limits]\nmemory_mb = 1", "limits.memory_mb = 1"),
            ("[limits]\npids = 10000000", "limits.pids"),
            ('[sandbox]\nuser = "0:0"', "sandbox.user = '0:0'"),
            ('[sandbox]\nuser = "root"', "sandbox.user"),
            ('[sandbox]\nruntime = "../runc"', "sandbox.runtime"),
            ("[models]\nallowed = [1]", "models.allowed.0"),
            ("budget = 5", "budget = 5"),
            ("[budget", "not valid TOML"),
        ],
        ids=lambda value: repr(value)[:40],
    )
    def test_a_mistake_is_named_with_what_would_be_right(self, tmp_path: Path, text: str, words: str) -> None:
        path = tmp_path / "mine.toml"
        path.write_text(text, "utf-8")
        with pytest.raises(PolicyError, match=words) as caught:
            Policy.load(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_file_names_its_policy_and_keeps_what_it_leaves_out(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_text('[budget]\ncalls = 7\n[models]\nallowed = ["a"]\n', "utf-8")
        policy = Policy.load(path)
        assert (policy.name, policy.budget.calls, policy.models.allowed) == ("mine", 7, ("a",))
        assert policy.limits == Limits()

    @pytest.mark.parametrize("name", ["", "nothing", "../default", "a\0b", "/", "default.toml"])
    def test_a_policy_that_is_not_there_is_named(self, name: str) -> None:
        with pytest.raises(PolicyError, match="default"):
            Policy.load(name)

    def test_a_file_that_is_no_text_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_bytes(b"\xff\xfe")
        with pytest.raises(PolicyError, match="cannot read"):
            Policy.load(path)

    @pytest.mark.parametrize("table", TABLES)
    def test_a_policy_is_frozen(self, table: str) -> None:
        policy = Policy()
        key = next(iter(TABLES[table].model_fields))
        with pytest.raises(ValidationError, match="frozen"):
            setattr(getattr(policy, table), key, 1)


class TestOverride:
    @pytest.mark.parametrize(
        ("assignment", "table", "key", "value"),
        [
            ("budget.calls=5", "budget", "calls", 5),
            (" limits.cpus = 2 ", "limits", "cpus", 2.0),
            ("limits.cell_timeout_s=0.5", "limits", "cell_timeout_s", 0.5),
            ("models.root=anthropic:x", "models", "root", "anthropic:x"),
            ("models.root=5", "models", "root", "5"),
            ("sandbox.runtime=runsc", "sandbox", "runtime", "runsc"),
            ('models.allowed=["a", "b"]', "models", "allowed", ("a", "b")),
        ],
        ids=str,
    )
    def test_a_value_is_set(self, assignment: str, table: str, key: str, value: Any) -> None:
        policy = Policy().override([assignment])
        assert getattr(getattr(policy, table), key) == value
        assert Policy() == Policy.load()

    @pytest.mark.parametrize(
        ("assignment", "words"),
        [
            ("calls=5", "table.key=value"),
            ("budget.calls", "table.key=value"),
            ("budget.=5", "table.key=value"),
            ("bugdet.calls=5", "no table 'bugdet'.*budget"),
            ("name.x=5", "no table 'name'"),
            ("budget.call=5", "unknown key 'budget.call'"),
            ("budget.calls=many", "budget.calls = 'many'"),
            ("budget.calls=0", "budget.calls = 0"),
            ("limits.cpus=true", "limits.cpus = True"),
            ("sandbox.user=0:0", "sandbox.user"),
        ],
        ids=str,
    )
    def test_a_mistake_is_named(self, assignment: str, words: str) -> None:
        with pytest.raises(PolicyError, match=words):
            Policy().override([assignment])

    def test_the_last_of_two_wins(self) -> None:
        assert Policy().override(["budget.calls=5", "budget.calls=6"]).budget.calls == 6
