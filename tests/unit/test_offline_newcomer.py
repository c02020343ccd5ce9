"""The offline model on the texts a newcomer brings: mails, logs, tables, prose, code, with what they really hold."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.models.base import ModelReply, ModelRequest
from orchestrator.models.offline import OfflineModel, items, spans, tables
from orchestrator.models.offline.answer import answer
from orchestrator.models.offline.prompts import Document
from orchestrator.models.offline.understand import BEYOND, understand
from tests.demo import __main__ as demo
from tests.demo import refusals
from tests.support.fake_repl import FakeRepl

LOG = "".join(f"2024-05-0{day}T10:00:0{day}Z INFO took ms={day * 10} from 10.0.0.{day}\n" for day in range(1, 5))
MAIL = (
    "From: Ann <ann@x.example>\nTo: BOB@x.example\nSubject: hi\n\nHello carol.o'neil@acme.test\n\n"
    "From: bob@x.example\nTo: ann@x.example\nSubject: re\n\nThe dog is called Bruma.\n"
)
TABLE = "name,city,amount\n" + "".join(f"p{number},Rome,{number * 10}.5\n" for number in range(1, 6))
CODE = "import os\n\ndef main(\n    x: int,\n    argv: list[str] | None = None) -> int:\n    return x\n"
BOOK = "The Great Book\n\nCHAPTER I\nA wolf ran.\nCHAPTER II\nA fox.\nCHAPTER III\nThe wolf slept.\n"


def ask(query: str, context: Any, **options: Any) -> str:
    return FakeRepl(OfflineModel(), context, **options).run(query) or ""


def test_dates_and_times_are_found_where_one_follows_the_other_at_once() -> None:
    assert ask("How many dates are there?", LOG) == "4 dates, all different."
    assert ask("What is the earliest date?", LOG) == "2024-05-01"
    assert ask("List all dates.", LOG).splitlines()[1:] == [f"2024-05-0{day}" for day in range(1, 5)]
    apache = '1.2.3.4 - - [01/May/2024:10:00:00 +0000] "GET /"'
    assert list(items.iso_dates(apache)) == ["2024-05-01"]
    assert list(items.find("times of day", LOG + apache)) == [f"10:00:0{second}" for second in (1, 2, 3, 4, 0)]
    assert list(items.find("dates", "2021-03-07-x 2021-03-07abc 2021-03-071")) == []


def test_lines_are_counted_by_code_and_a_cut_line_is_reported() -> None:
    text = "x " * 900_000 + "needle " + "y " * 900_000 + "needle z needle"
    assert ask('How many lines contain "needle"?', text).startswith('1 line that contains "needle"')
    assert "A line longer than a slice was cut" in ask("List all email addresses.", text)
    assert "was cut" not in ask("List all email addresses.", "a\n" * 200_000)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ('How many lines start with "two"?', 1),
        ('How many lines end with "two"?', 2),
        ('How many lines contain "two" and "one"?', 1),
        ('How many lines contain the word "tw"?', 0),
    ],
)
def test_lines_are_counted_as_the_question_relates_them(query: str, expected: int) -> None:
    for end in ("\n", "\r\n"):
        answered = ask(query, end.join(["one two", "three two", "two four", ""]))
        assert answered.startswith(f"{expected} line"), answered
        assert "sub-calls" not in answered


def test_line_ends_of_two_characters_are_line_ends() -> None:
    assert ask("How many paragraphs are there?", "one\r\n\r\ntwo\r\n") == "2 paragraphs."
    assert ask("How many characters are there?", "one\r\n") == "5 characters."
    assert ask("What is the last line?", "one\r\ntwo\r\n") == "two"
    assert answer('How many lines end with "two"?\n\none two\r\ntwo\r\n') == "2"


def test_what_stands_before_the_first_chapter_is_no_chapter() -> None:
    assert ask("How many chapters are there?", BOOK) == "3 chapters."
    assert ask("In how many chapters does wolf occur?", BOOK).startswith("2 of 3 documents")
    assert "line 1)" in ask("Where is Book defined? What is the Great Book?", BOOK)


def test_digits_of_dates_times_addresses_versions_and_ids_are_no_numbers() -> None:
    text = (
        "2024-05-01 10:00:00 2024-05-01T10:00:00Z 3 March 2021 ORD-1234 10.0.0.1 v1.2 version 3.11 #55 a/12 7F-19 "
        "port:8080 x=-3 1-2 a 3-year plan, $9 (7) 1,200. took 12 ms"
    )
    found = list(items.find("numbers", text))
    assert found == ["8080", "-3", "1", "2", "3", "9", "7", "1,200", "12"]
    assert list(items.numbers_after("amount", "amount due 2024-05-01: 12\nAmounts = 5, 6")) == ["12", "5"]


def test_a_decimal_comma_behind_dots_is_one() -> None:
    assert ask("What is the sum of all numbers?", "1.234,56 and 1").startswith("1235.56 ")
    assert answer("What is the sum of all numbers?\n\n1.234,56 and 1") == "1235.56"
    assert ask("What is the sum of amount?", "amount;n\n1.234,50;1\n2,25;2\n").startswith("1236.75 ")


def test_addresses_are_whole_and_the_same_in_either_case() -> None:
    assert list(items.find("emails", "carol.o'neil@acme.test 'bob@x.example' BOB@X.example")) == [
        "carol.o'neil@acme.test",
        "bob@x.example",
        "bob@x.example",
    ]
    assert ask("How many email addresses are there?", MAIL) == "5 email addresses, 3 of them different."
    assert ask('List all email addresses that end with "X.example".', MAIL).startswith("2 different")


def test_messages_are_counted_as_such_or_not_at_all() -> None:
    assert ask("How many emails are there in the text?", MAIL) == "2 emails."
    assert ask("How many messages are there in the text?", MAIL) == "2 messages."
    assert ask("How many emails are there?", "to a@b.example").startswith("The context is one text, and I see nothing")
    assert answer(f"How many emails are there?\n\n{MAIL}") == "2"


def test_a_place_is_that_of_the_value_and_a_line_is_quoted_alone() -> None:
    log = "ERROR disk is full\nWARN fan is slow\nThe vault code is Q-1.\nINFO done\n"
    assert ask("What is the vault code?", log).splitlines()[1] == "“The vault code is Q-1.” (line 3)"
    wrapped = (
        "Here begins a story of some length, in which it is told that\nthe vault code of the green door\nis Q-4711.\n"
    )
    assert ask("What is the vault code of the green door?", wrapped).endswith("(line 3)")
    mail = ask("What is the subject?", MAIL)
    assert "“Subject: hi” (line 3)" in mail
    assert "(line 9)" in mail


@pytest.mark.parametrize(
    "query",
    [
        "How many files import os but not sys?",
        "Which files mention wolves without foxes?",
        "How many lines do not contain x?",
        "List all words except names.",
        "How many words does the second paragraph have?",
    ],
)
def test_a_condition_that_is_not_read_is_named_at_once(query: str) -> None:
    repl = FakeRepl(OfflineModel(), {"a": "import os\n", "b": "wolves\n"})
    assert (repl.run(query) or "").startswith("I do not read questions with “")
    assert repl.cells == []


def test_a_negated_question_gets_a_negated_answer() -> None:
    assert ask("Does the text not mention wolves?", BOOK + "wolves").startswith("No, it is there: 1 occurrence of")
    assert ask("Is there no wolf?", BOOK).startswith('No, it is there: 2 occurrences of the word "wolf"')
    assert ask("Does the text not mention bears?", BOOK).startswith("Right: I could not find")
    assert ask("Which files do not import sys?", {"a": CODE, "b": "import sys"}).endswith("\na")
    assert understand("How many times is the word not used?").kind == "count"


def test_a_noun_that_cannot_be_counted_is_not_passed_off_as_one() -> None:
    answered = ask("How many cities are there?", TABLE)
    assert answered.startswith("I cannot tell what counts as cities; I counted the word. 1 occurrence of")
    assert not ask("How many unicorns are mentioned?", BOOK).startswith("I cannot tell")


@pytest.mark.parametrize(
    ("query", "begins"),
    [
        ("What is the sum of amount?", "152.5 (the sum of 5 numbers in the column"),
        ("What is the average amount?", "30.5 "),
        ("What is the largest amount?", "50.5 "),
        ("What is the sum of the amount column?", "152.5 "),
        ("What is the smallest number in the column amount?", "10.5 "),
        ("How many rows does the table have?", "5 rows"),
        ("How many rows contain Rome?", "5 lines that contain"),
        ("How many rows are there?", "5 rows"),
        ("How many columns are there?", "3 columns: name, city, amount"),
        ("What are the columns?", "3 columns: name, city, amount"),
    ],
)
def test_a_table_is_read_by_its_columns(query: str, begins: str) -> None:
    assert ask(query, TABLE).startswith(begins)
    assert ask(query, {"t.csv": TABLE.replace("\n", "\r\n"), "readme": BOOK}).startswith(begins)


def test_a_text_that_is_no_table_has_no_columns() -> None:
    assert ask("How many rows are there?", BOOK).startswith("I see no table")
    assert tables.read("Hello, world\nno commas here\n") is None
    assert ask("What is the sum of all prices?", TABLE.replace("amount", "unit_price")).startswith("152.5 ")
    assert tables.column("Amounts", TABLE) == ["10.5", "20.5", "30.5", "40.5", "50.5"]
    assert answer(f"What is the sum of amount?\n\n{TABLE}") == "152.5"


@pytest.mark.parametrize(
    "text", ["amount,b\rc\n1,2\r3\n", 'amount,b\n1,2\n3,"4\n' + "5,6\n" * 60_000, 'amount,"b\n1', "amount,b\n\0,1\n"]
)
def test_a_broken_table_breaks_nothing(text: str) -> None:
    assert ask("What is the sum of amount?", text)
    assert ask("How many rows are there?", text)
    assert answer(f"What is the sum of amount?\n\n{text}")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("What is the first line?", "one two"),
        ("What is the second line?", "three"),
        ("What is the last line of the text?", "five six"),
        ("What are the first two lines?", "one two\nthree"),
        ("What is line 3?", "five six"),
        ("What is line 9?", "There are only 3 lines."),
        ("What is the last word?", "six"),
    ],
)
def test_a_piece_is_shown_by_its_place(query: str, expected: str) -> None:
    assert ask(query, "one two\nthree\nfive six\n") == expected


@pytest.mark.parametrize(
    "query", ["Translate the text into French.", "Can you please rewrite it?", "Write a poem about it."]
)
def test_what_is_no_extraction_is_declined_at_once_and_again(query: str) -> None:
    repl = FakeRepl(OfflineModel(), BOOK)
    assert repl.run(query) == BEYOND
    assert repl.cells == []


def test_values_end_where_their_brackets_do() -> None:
    answered = ask("What is the default value of argv?", {"a.py": CODE})
    assert answered.splitlines()[0] == "None"
    ((_, _, value, _),) = spans.values("b", "def f(a, b=(1, 'x)'), c=3):\n")
    assert value == "(1, 'x)')"
    assert ask("What is the name of the dog?", MAIL).splitlines()[0] == "Bruma"


def test_a_short_label_is_no_plural() -> None:
    assert ask("What is the sum of ms?", LOG) == '100 (the sum of 4 numbers after the label "ms")'
    assert understand("What is the average latency of status?").what.endswith("status")
    assert understand("What is the total of all amounts?").what == "amount"


class Useless:
    """A sub-model that never says what was asked for."""

    name = "useless"

    def __init__(self, text: str) -> None:
        self.text = text

    async def complete(self, _request: ModelRequest) -> ModelReply:
        return ModelReply(self.text)

    async def aclose(self) -> None:
        """Nothing is held open."""


@pytest.mark.parametrize(
    "query", ["List all dates.", "How many functions are there?", "What is the code?", "Summarise."]
)
@pytest.mark.parametrize("text", ["no idea", "null", "7"])
def test_replies_that_cannot_be_read_end_after_one_more_round_and_without_an_answer(query: str, text: str) -> None:
    repl = FakeRepl(OfflineModel(), LOG, sub=Useless(text))
    answered = repl.run(query) or ""
    assert answered.startswith("I could not answer the question: none of my sub-calls")
    assert "no readable reply" in answered
    assert repl.namespace.get("Final") is None
    assert sum("# Step: again" in cell for cell in repl.cells) == 1
    assert sum("# Step: again" not in cell for cell in repl.cells) == 3


def test_sub_calls_that_all_fail_give_no_answer() -> None:
    repl = FakeRepl(OfflineModel(), LOG, fault=lambda _number, _prompt: "model_unavailable")
    assert "(model_unavailable: 1)" in (repl.run("What is the vault code?") or "")
    assert repl.namespace.get("Final") is None
    counted = ask("How many times does INFO occur?", LOG, fault=lambda _number, _prompt: "model_unavailable")
    assert counted.startswith("4 occurrences")


def test_what_was_not_read_is_told_in_words() -> None:
    text = {"a": LOG, "b": "x\n" * 40_000, "c": MAIL}
    answered = ask("List all dates.", text, fault=lambda _, part: "model_unavailable" if "Bruma" in part else None)
    assert "pieces were not read: model_unavailable: 1.)" in answered
    assert "{" not in answered


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("How many lines are there?", "1 line."),
        ("How many documents are there?", "1 document."),
        ("How many IP addresses are there?", "1 IP address."),
        ("How many different IP addresses are there?", "1 different IP address (1 in all)."),
        ("List all IP addresses.", "1 different IP address:\n10.0.0.1"),
        ("What is the most common word?", "from: 1 time"),
    ],
)
def test_one_is_singular(query: str, expected: str) -> None:
    assert ask(query, "from 10.0.0.1\n") == expected


@pytest.mark.parametrize("part", ["1-", "1:", "1/", "a'a", "#1", "amount ", "amount 1-", "a,b,", "a is (", "o'"])
def test_no_text_makes_the_new_readings_slow(part: str) -> None:
    text = part * (100_000 // len(part))
    began = time.perf_counter()
    for noun in ("numbers", "emails", "dates", "times of day"):
        for _ in items.find(noun, text):
            pass
    list(items.numbers_after("amount", text))
    list(spans.values("a", text))
    tables.read(text)
    answer(f"What does a say about 1?\n\n{text}")
    assert Document("", text).text
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize(
    ("first", "second", "printed", "held"),
    [
        ("timeout", "ok", "still here and able\n", True),
        ("error", "ok", "still here and able\n", True),
        ("ok", "ok", "still here and able\n", False),
        ("error", "error", "", False),
        ("timeout", "ok", "still here \n", False),
    ],
)
def test_the_demo_wants_a_fork_bomb_to_end_and_the_next_cell_to_work(
    monkeypatch: pytest.MonkeyPatch, first: str, second: str, printed: str, *, held: bool
) -> None:
    cells = [{"status": first, "stdout": ""}, {"status": second, "stdout": printed}]
    monkeypatch.setattr(refusals, "_execute", lambda *_arguments: cells)
    fork = refusals.refusals(Path())[1]
    assert fork.holds() is held


def test_the_demo_keeps_only_its_own_journals_and_tells_their_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    journals = tmp_path / "journals"
    journals.mkdir()
    (journals / "older.jsonl").write_text("x" * 5_000_000)

    def asked(*_arguments: str) -> list[bool]:
        journals.mkdir()
        (journals / "newer.jsonl").write_text("x" * 1_500_000)
        return [True]

    monkeypatch.setattr(demo, "JOURNALS", journals)
    monkeypatch.setattr(demo, "_ask_all", asked)
    monkeypatch.setattr(demo, "refusals", lambda _journals: [])
    assert demo.main() == 0
    assert [path.name for path in journals.iterdir()] == ["newer.jsonl"]
    assert "1.5 MB" in capsys.readouterr().out
