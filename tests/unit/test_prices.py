"""Exact prices."""

from __future__ import annotations

import datetime as dt
import math
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import ConfigurationError
from orchestrator.models.base import Usage
from orchestrator.models.prices import SHIPPED, PriceTable

TABLE = PriceTable.load()
MILLION = 1_000_000
DOLLAR = 1_000_000_000  # in billionths

COUNTS = st.integers(0, 10**7)
NAMES = st.sampled_from(["claude-fable-5-1", "claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5"])


def written(path: Path, text: str) -> Path:
    file = path / "own.toml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("name", "dollars_in", "dollars_out"),
    [("claude-fable-5-1", 10, 50), ("claude-opus-5-5", 4, 20), ("claude-sonnet-5-5", 2, 10)],
)
def test_a_million_tokens_cost_what_the_page_says(name: str, dollars_in: int, dollars_out: int) -> None:
    assert TABLE.cost_nano(name, Usage(input_tokens=MILLION)) == dollars_in * DOLLAR
    assert TABLE.cost_nano(name, Usage(output_tokens=MILLION)) == dollars_out * DOLLAR


@pytest.mark.parametrize(
    ("name", "read", "write"),
    [
        ("claude-fable-5-1", 250, 12_500),
        ("claude-opus-5-5", 200, 5_000),
        ("claude-sonnet-5-5", 100, 2_500),
        ("claude-haiku-5-5", 10, 125),
    ],
)
def test_a_cached_token_costs_its_share_of_an_input_token(name: str, read: int, write: int) -> None:
    assert TABLE.cost_nano(name, Usage(cache_read_tokens=1)) == read
    assert TABLE.cost_nano(name, Usage(cache_write_tokens=1)) == write


def test_the_parts_of_a_bill_add_up() -> None:
    usage = Usage(input_tokens=3, output_tokens=5, cache_read_tokens=7, cache_write_tokens=11)
    assert TABLE.cost_nano("claude-opus-5-5", usage) == 3 * 4_000 + 5 * 20_000 + 7 * 200 + 11 * 5_000


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        (Usage(input_tokens=100_000, output_tokens=10), 100_000 * 100 + 10 * 500),
        (Usage(input_tokens=100_001, output_tokens=10), 100_001 * 500 + 10 * 2_500),
        # The cached part counts towards the length of the prompt, and everything takes the higher price.
        (Usage(input_tokens=1, cache_read_tokens=100_000), 500 + 100_000 * 50),
        (Usage(input_tokens=1, cache_write_tokens=99_999), 100 + 99_999 * 125),
    ],
)
def test_a_long_prompt_makes_the_whole_request_dearer(usage: Usage, cost: int) -> None:
    assert TABLE.cost_nano("claude-haiku-5-5", usage) == cost


@pytest.mark.parametrize("suffix", ["-20260901", "@20260901", "-2026-09-01"])
def test_a_dated_model_has_the_price_of_its_line(suffix: str) -> None:
    assert TABLE.cost_nano(f"claude-opus-5-5{suffix}", Usage(input_tokens=1)) == 4_000


@pytest.mark.parametrize("name", ["claude-opus-5-5-mini", "claude-opus-5", "gpt-9", "", "claude-opus-5-5-2026"])
def test_an_unknown_model_is_unpriced_and_not_taken_for_another(name: str) -> None:
    assert TABLE.cost_nano(name, Usage(input_tokens=1)) is None
    assert TABLE.worst_case_nano(name, 10, 10) == 0


@pytest.mark.parametrize("name", ["offline", "offline:small", "scripted"])
def test_what_runs_here_is_free_and_not_unpriced(name: str) -> None:
    assert TABLE.cost_nano(name, Usage(10, 10)) == 0
    assert TABLE.worst_case_nano(name, 10, 10) == 0


@given(NAMES, COUNTS, COUNTS, COUNTS, COUNTS)
def test_no_bill_exceeds_the_worst_case_reserved_for_it(name: str, new: int, out: int, read: int, write: int) -> None:
    cost = TABLE.cost_nano(name, Usage(new, out, read, write))
    assert cost is not None
    assert cost <= TABLE.worst_case_nano(name, new + read + write, out)


def test_a_cost_is_rounded_up_once_at_the_end(tmp_path: Path) -> None:
    table = PriceTable.load(written(tmp_path, "[models.odd]\ninput = 0.0001\noutput = 0.0007\ncache_read = 0.1\n"))
    assert table.cost_nano("odd", Usage(input_tokens=1)) == 1
    assert table.cost_nano("odd", Usage(input_tokens=10)) == 1
    exact = 33 * Fraction(1, 10) + 7 * Fraction(7, 10) + 5 * Fraction(1, 100)
    assert table.cost_nano("odd", Usage(33, 7, 5)) == math.ceil(exact)
    assert table.cost_nano("odd", Usage()) == 0


def test_an_own_file_adds_replaces_and_is_named_as_the_source(tmp_path: Path) -> None:
    head = 'as_of = 2027-01-02\nfree = ["local"]\n'
    text = f"{head}[models.gpt-9]\ninput = 1\noutput = 2\n[models.scripted]\ninput = 3\noutput = 4\n"
    table = PriceTable.load(written(tmp_path, text))
    one = Usage(input_tokens=1)
    assert (table.as_of, table.source) == (dt.date(2027, 1, 2), str(tmp_path / "own.toml"))
    assert [table.cost_nano(name, one) for name in ("gpt-9", "scripted", "local", "claude-opus-5-5", "offline")] == [
        1_000,
        3_000,
        0,
        4_000,
        0,
    ]


def test_the_shipped_table_says_when_and_whence() -> None:
    assert TABLE.as_of is not None
    assert TABLE.as_of >= dt.date(2026, 11, 1)
    assert "price pages" in TABLE.source
    assert SHIPPED.is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[models.x]\ninput = 1\n", "models.x lacks the key output"),
        ("[models.x]\ninptu = 1\ninput = 1\noutput = 1\n", "unknown key models.x.inptu; known here: cache_read"),
        ("[models.x]\ninput = -1\noutput = 1\n", "models.x.input = -1: input should be greater than or equal to 0"),
        ("[models.x]\ninput = true\noutput = 1\n", "models.x.input = True"),
        ("[models.x]\ninput = nan\noutput = 1\n", "models.x.input = nan"),
        ("prices = 1\n", "unknown key prices; known here: as_of, free, models, source"),
        ("[models.x.long_prompt]\nabove = 1\n", "unknown key models.x.long_prompt.above; known here: above_tokens"),
        ("= 1\n", "is not valid TOML"),
    ],
)
def test_a_bad_file_is_told_with_its_name_and_the_key(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        PriceTable.load(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read price table .*none\.toml: No such file"):
        PriceTable.load(tmp_path / "none.toml")
