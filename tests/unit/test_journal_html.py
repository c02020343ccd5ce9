from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator import events
from orchestrator.errors import JournalError
from orchestrator.events import Event
from orchestrator.rlm.result import Result
from orchestrator.text import printable
from orchestrator.trajectory.html import fold as folding
from orchestrator.trajectory.html import page as maker
from tests.support.journals import everywhere, with_calls, write_at
from tests.support.runs import a_run, answered, asked, cell_result, finished, replied, started

HTML = Path(maker.__file__).parent
NASTY = "</script><!--<script>\u2028\u2029\ud800\udfff\u202e\x00]]>&lt;'\"{{data}}\\u003c"


def write(folder: Path, *happened: Event, run: str = "r1", parent: str | None = None) -> Path:
    return write_at(folder, run, [(n / 10, event) for n, event in enumerate(happened)], parent)


class Elements(HTMLParser):
    """What an HTML parser makes of a page: its elements, and the texts of its scripts and style sheets."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is not None:
            self.raw.append(data)


def embedded(page: str) -> Any:
    return json.loads(page.partition('id="data">')[2].partition("</script>")[0])


def test_a_page_holds_the_whole_run(tmp_path: Path) -> None:
    _, data = maker.render(write(tmp_path, *a_run()))
    run, texts = data["runs"][0], data["texts"]
    assert (texts[run["query"]], texts[run["answer"]], run["status"]) == ("How many?", "42", "answered")
    assert [item["k"] for item in run["items"]] == ["note", "turn", "cell", "shown", *["note"] * 5]
    cell = run["items"][2]
    assert (texts[cell["code"]], cell["status"], texts[cell["stdout"]]) == ("print(1)", "ok", "1\n")
    assert [item["k"] for item in cell["items"]] == ["note"] * 8 + ["child", "note", "note"]
    first, second = cell["calls"]
    assert (texts[first[4]], texts[first[5]], first[10]) == ("What is here?", "A word.", 2)
    assert (second[5], second[6], second[7]) == (None, "model_unavailable", "503 from the provider")
    assert run["limits"] == [{"at": 2.4, "text": "calls (0 left)"}]


def test_a_page_is_what_its_template_says_and_nothing_more(tmp_path: Path) -> None:
    for text in ("plain", NASTY, *("<" + tag for tag in ("script>", "img src=x>", "/style>", "/title>"))):
        page, _ = maker.render(everywhere(tmp_path / str(abs(hash(text))), text))
        names = [tag for tag, _ in Elements(page).tags]
        assert names == re.findall(r"<([a-z0-9]+)[ >]", (HTML / "page.html").read_text("utf-8"))


def test_the_policy_allows_one_script_and_one_style_sheet_by_their_hashes(tmp_path: Path) -> None:
    import base64
    import hashlib

    page, _ = maker.render(write(tmp_path, *a_run()))
    elements = Elements(page)
    policy = next(a["content"] for _, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == rules["trusted-types"] == ["'none'"]
    style, script = elements.raw[0], elements.raw[-1]
    for name, text in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[name] == [f"'sha256-{digest}'"]
    assert "unsafe" not in policy


def test_the_script_never_parses_markup_and_asks_for_nothing() -> None:
    script = "".join((HTML / name).read_text("utf-8") for name in maker.SCRIPTS)
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|setHTML|srcdoc"
    assert not re.search(sinks + r"|\beval\(|\bFunction\(|\bimport\(", script)
    assert not re.search(r"\bfetch\(|XMLHttpRequest|WebSocket|EventSource|sendBeacon|localStorage|cookie", script)
    assert sorted(path.name for path in HTML.glob("*.js")) == sorted(maker.SCRIPTS)
    assert "</" not in script
    assert not re.search(r"https?:(?!//www\.w3\.org/2000/svg)", script + (HTML / "page.css").read_text("utf-8"))
    assert not re.search(r"@import|url\(", (HTML / "page.css").read_text("utf-8"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(), max_size=60) | st.sampled_from([NASTY, "</SCRIPT", "<!--", "]]>"]), max_size=4)
)
def test_any_text_comes_out_of_the_page_as_it_went_in(tmp_path: Path, said: list[str]) -> None:
    # A high surrogate before a low one is the same to JSON as the one character they encode.
    said = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in said]
    page = maker._embedded({"texts": said}, tmp_path)
    assert not set("<>&") & set(page)
    assert json.loads(page) == {"texts": said}
    page.encode()


def test_lone_surrogates_survive(tmp_path: Path) -> None:
    page, _ = maker.render(write(tmp_path, started("a\ud800b"), asked(1, "\udfff")))
    page.encode()
    assert {"a\ud800b", "\udfff"} <= set(embedded(page)["texts"])


def test_the_title_is_cleaned_and_escaped(tmp_path: Path) -> None:
    page, _ = maker.render(write(tmp_path, started("\u202e</title><script>x\x1b[2J")))
    title = page.partition("<title>")[2].partition("</title>")[0]
    assert title == "&lt;/title&gt;&lt;script&gt;x · rlm-sandbox r1"
    assert printable(title) == title


def test_a_text_stands_in_a_page_once(tmp_path: Path) -> None:
    text = "the same " * 500
    calls = [event for n in range(50) for event in (asked(n, text), answered(n, text))]
    page, data = maker.render(write(tmp_path, started(), events.CellStarted(1, 1, "x"), *calls, finished(answer=text)))
    assert page.count(text) == 1
    assert data["texts"].count(text) == 1


def test_a_page_has_bounds_whatever_the_journal_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "TEXT_CHARS", 1000)
    monkeypatch.setattr(folding, "PAGE_CHARS", 5000)
    monkeypatch.setattr(folding, "SHORT_CHARS", 100)
    calls = [asked(n, f"{n} " + "x" * 5000 + " end") for n in range(20)]
    _, data = maker.render(write(tmp_path, started(), *calls))
    texts = [text for text in data["texts"] if "xxx" in text]
    assert data["cut"] == 20
    assert max(map(len, texts)) < 1100
    assert sum(map(len, texts)) < 5000 + 1100 + 20 * 200
    assert all(text.endswith(" end") for text in texts)


def test_child_runs_are_in_the_page_of_their_parent_and_on_its_clock(tmp_path: Path) -> None:
    write(tmp_path, started("A smaller question", 1), replied(), finished(), run="child-1", parent="r1")
    _, data = maker.render(write(tmp_path, *a_run()))
    child = data["runs"][1]
    assert data["texts"][child["query"]] == "A smaller question"
    assert (child["at"], child["place"], child["depth"]) == (1.6, [0, 2], 1)


def test_a_childs_journal_that_is_missing_or_damaged_leaves_the_parents_page_whole(tmp_path: Path) -> None:
    path = write(tmp_path, *a_run())
    assert "cannot read the journal" in maker.render(path)[1]["runs"][1]["damage"]
    (tmp_path / "child-1.jsonl").write_text("{}\n")
    _, data = maker.render(path)
    assert "line 1 is not a line of a journal" in data["runs"][1]["damage"]
    assert data["runs"][0]["status"] == "answered"


@pytest.mark.parametrize("child", ["../r1", "a/b", "/etc/passwd", "r1", ""])
def test_a_childs_name_never_leads_out_of_the_folder_or_round_in_circles(tmp_path: Path, child: str) -> None:
    write(tmp_path, started("outside"))
    path = write(tmp_path / "journals", started(), events.ChildStarted(child, 1, "q"))
    page, _ = maker.render(path)
    assert "outside" not in page


def test_spending_is_the_ledgers_account_and_else_what_was_recorded(tmp_path: Path) -> None:
    table = {"calls": 3, "input_tokens": 10, "output_tokens": 5, "cache_read_tokens": 2, "cost_usd": 0.5}
    usage = {"calls": 3, "by_model": {"m": table}, "by_depth": {"0": table}}
    _, data = maker.render(write(tmp_path, *a_run()[:-1], events.RunFinished("answered", "42", "", usage, 1, 9.5)))
    assert data["spend"] == {
        "models": [["m", 3, 12, 5, 2, 0.5]],
        "depths": [["depth 0", 3, 12, 5, 2, 0.5]],
        "counted": False,
    }
    _, data = maker.render(write(tmp_path, *a_run()[:-1], run="r2"))
    assert data["spend"]["counted"]
    assert [row[0] for row in data["spend"]["models"]] == ["root-model", "sub-model"]


def test_estimates_are_spent_and_an_answer_given_twice_is_not(tmp_path: Path) -> None:
    again = events.SubcallFinished(2, "A word.", "end", {}, None, 0, 0.0, memo_of=1)
    lost = events.EstimateCharged("sub", 1, 2, 900, 0.5)
    happened = [started(), events.CellStarted(1, 1, "x"), asked(1), lost, answered(1), asked(2), again]
    _, data = maker.render(write(tmp_path, *happened))
    assert data["spend"]["models"] == [["sub-model", 3, 1200 + 900, 50, 200, 0.501]]
    assert data["runs"][0]["items"][0]["calls"][1][6] == "the answer of sub-call 1; nothing was sent"


def test_a_damaged_journal_gives_a_page_of_what_stands_before(tmp_path: Path) -> None:
    path = write(tmp_path, *a_run()[:5])
    path.write_text(path.read_text() + "not json\n")
    _, data = maker.render(path)
    assert "is not JSON" in data["runs"][0]["damage"]
    assert data["runs"][0]["status"] == "unfinished"


@pytest.mark.parametrize(
    "broken",
    [{"query": 1}, {"context": None}, {"policy": 3}, {"depth": "x"}, {"t": float("nan")}],
)
def test_fields_of_the_wrong_type_are_one_error(tmp_path: Path, broken: dict[str, Any]) -> None:
    path = write(tmp_path, started())
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **broken}) + "\n")
    with pytest.raises(JournalError, match=r"not of this format|not finite"):
        maker.render(path)


@pytest.mark.parametrize("usage", [{"by_model": 3}, {"by_model": {"m": 3}}, {"by_model": {"m": {"calls": "x"}}}])
def test_an_account_that_is_none_is_damage(tmp_path: Path, usage: dict[str, Any]) -> None:
    end = events.RunFinished("answered", "42", "", usage, 1, 9.5)
    path = write(tmp_path, started(), end)
    _, data = maker.render(path)
    assert "not of this format" in data["runs"][0]["damage"]


def test_ten_thousand_sub_calls_make_a_page_linear_in_what_is_new(tmp_path: Path) -> None:
    path = with_calls(tmp_path, 10_000)
    page, data = maker.render(path)
    assert len(data["runs"][0]["items"][1]["calls"]) == 10_000
    assert len(page) < path.stat().st_size


def test_events_of_a_kind_this_version_does_not_know_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, started(), replied())
    lines = path.read_text("utf-8").splitlines()
    path.write_text("\n".join([lines[0], json.dumps({**json.loads(lines[-1]), "kind": "tool_called"})]) + "\n")
    assert maker.render(path)[1]["runs"][0]["items"][0]["text"].startswith("tool_called")


def test_cells_that_never_ended_or_never_began_are_there(tmp_path: Path) -> None:
    _, data = maker.render(
        write(tmp_path, started(), events.CellStarted(1, 1, "x"), asked(), events.CellFinished(1, 7, cell_result()))
    )
    unended, unbegun = data["runs"][0]["items"]
    assert (unended["status"], unended["end"], unended["calls"][0][2]) == ("", None, None)
    assert (unbegun["n"], unbegun["code"], unbegun["status"]) == (7, None, "ok")


# The result in a notebook --------------------------------------------------------------------------------------------

TABLE = {"calls": 3, "input_tokens": 1000, "output_tokens": 50, "cache_read_tokens": 200, "cost_usd": 0.5}


def a_result(answer: str | None = "42", reason: str = "", model: str = "m") -> Result:
    usage = {"calls": 3, "cost_usd": 0.5, "wall_s": 12.34, "by_model": {model: TABLE}, "by_depth": {"0": TABLE}}
    return Result("answered", answer, reason, usage, Path("/journals/r1.jsonl"), 2, run="r1")


def test_a_result_in_a_notebook_is_a_small_table() -> None:
    told = re.sub(r"<[^>]+>", "|", a_result()._repr_html_())
    for part in (
        "|42|",
        "|answered|",
        "2 turns · 3 calls · $0.5000 · 12.3 s",
        "1,200 tokens in, 50 out · $0.5000",
        "|r1|",
    ):
        assert part in told


def test_a_strangers_text_is_never_rendered_in_a_notebook() -> None:
    plain = [tag for tag, _ in Elements(a_result()._repr_html_()).tags]
    for text in (NASTY, "<img src=x onerror=alert(1)>", "'\"><script>", "</pre></td></table><h1>", "\u202e\x1b[2J"):
        page = a_result(text, text, text)._repr_html_()
        assert [tag for tag, _ in Elements(page).tags] == ["div", "pre", *plain[2:]]
        assert {name for _, attributes in Elements(page).tags for name in attributes} == {"style", "scope"}
        assert printable(page) == page


def test_a_result_without_an_answer_or_an_account_has_a_table_too() -> None:
    result = Result("failed", None, "interrupted", {}, None, 0)
    assert "failed (interrupted)" in result._repr_html_()
    assert "<pre" not in result._repr_html_()


def test_a_long_answer_does_not_fill_the_notebook() -> None:
    assert len(a_result("x" * 1_000_000)._repr_html_()) < 10_000
