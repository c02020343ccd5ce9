"""The page of ``journal html`` in a real browser: what a stranger wrote stays text, and a person gets around."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import events
from orchestrator.events import Event
from orchestrator.text import json_text
from orchestrator.trajectory.html import page as maker
from tests.support.browser import Page
from tests.support.journals import everywhere, with_calls, write_at
from tests.support.runs import a_run, asked, cell_result, replied, started

PROOF = "window.pwned=(window.pwned||0)+1;alert('pwned')"
BEACON = "http://127.0.0.1:9/beacon"
ATTACKS = [
    f"</script><script>{PROOF}</script>",
    f"<!--<script>{PROOF}//</script>-->",
    f"</style></title></noscript></textarea><script>{PROOF}</script>",
    f'<img src=x onerror="{PROOF}"><svg onload="{PROOF}"><body onpageshow="{PROOF}">',
    f'"><details open ontoggle="{PROOF}">\'><input autofocus onfocus="{PROOF}">',
    f'<a href="javascript:{PROOF}" id=link>link</a> javascript:{PROOF} [x](javascript:{PROOF})',
    f'<iframe srcdoc="<script>parent.{PROOF}</script>"></iframe><object data="{BEACON}"></object>',
    f'<link rel=stylesheet href={BEACON}><img src={BEACON}><meta http-equiv=refresh content="0;url={BEACON}">',
    f"</script><style>*{{display:none;background:url({BEACON})}}</style><base href={BEACON}/>",
    "{{script}}{{data}}{{policy}}${alert(1)}`'\"\\u003c/script\\u003e\\",
    "]]>\u2028\u2029\ud800 \udfff \x00\x1b]0;t\x07 &lt;script&gt; &#60;script&#62; constructor __proto__",
]
HERE = Path(__file__).parent
EVERYTHING_OPEN = (HERE / "open_everything.js").read_text("utf-8")
CONTRAST = (HERE / "least_contrast.js").read_text("utf-8")


def written(journal: Path, target: Path, change: Callable[[str], str] = str) -> Path:
    text = change(maker.render(journal)[0])
    target.write_text(text, "utf-8", errors="replace", newline="\n")
    return target


def explore(page: Page) -> None:
    """Open everything a person can open, choose every row that is drawn, and search for the attack's words."""
    page.evaluate(EVERYTHING_OPEN)
    page.evaluate("document.querySelectorAll('.row').forEach((row) => row.click())")
    page.evaluate(EVERYTHING_OPEN)
    page.evaluate("document.querySelector('input[type=search]').focus()")
    page.type("script")
    page.wait("document.querySelector('[role=status]').textContent !== ''")
    page.evaluate("document.querySelectorAll('.found .row').forEach((row) => row.click())")


def harm(page: Page) -> tuple[object, list[str], list[str]]:
    return page.evaluate("window.pwned ?? null"), page.dialogs, page.requests


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_stranger_wrote_does_not_run_load_or_style_anything(page: Page, tmp_path: Path, attack: str) -> None:
    journal = everywhere(tmp_path, attack)
    page.open(written(journal, tmp_path / "page.html"))
    explore(page)
    assert harm(page) == (None, [], [])
    assert page.complaints == []
    allowed = "'iframe, object, embed, img, link, base, form, script:not(#data):not(body > script), [style*=url]'"
    assert page.evaluate(f"document.querySelectorAll({allowed}).length") == 0
    assert page.evaluate("[...document.querySelectorAll('a')].every((a) => a.getAttribute('href').startsWith('#'))")
    assert page.evaluate(
        "[...document.querySelectorAll('*')].every((e) => ![...e.attributes].some((a) => a.name.startsWith('on')))"
    )
    assert page.evaluate("document.querySelectorAll('main > section').length") >= 5


def unescaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maker, "_embedded", lambda data, _: json_text(data))


def without_policy(page: str) -> str:
    before, _, rest = page.partition('<meta http-equiv="Content-Security-Policy"')
    return before + rest.partition(">\n")[2]


RUNS = f'</script><script>{PROOF}</script><img src=x onerror="{PROOF}"><img src={BEACON}>'


def test_twin_without_escaping_and_without_the_policy_the_attack_succeeds(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unescaped(monkeypatch)
    target = written(everywhere(tmp_path, RUNS), tmp_path / "page.html", without_policy)
    page.send("Page.navigate", url=target.as_uri())
    page.wait("window.pwned > 0")
    assert "pwned" in page.dialogs
    assert BEACON in page.requests


def test_the_policy_alone_holds(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unescaped(monkeypatch)
    target = written(everywhere(tmp_path, RUNS), tmp_path / "page.html")
    page.send("Page.navigate", url=target.as_uri())
    page.wait("document.readyState === 'complete' && document.images.length > 0")
    assert harm(page)[:2] == (None, [])
    assert any("Content Security Policy" in text for text in page.complaints)
    assert not page.evaluate("[...document.images].some((image) => image.naturalWidth)")


def test_the_escaping_alone_holds(page: Page, tmp_path: Path) -> None:
    page.open(written(everywhere(tmp_path, RUNS), tmp_path / "page.html", without_policy))
    explore(page)
    assert harm(page) == (None, [], [])


def test_the_policy_leaves_no_way_to_make_markup_of_a_string(page: Page, tmp_path: Path) -> None:
    target = written(with_calls(tmp_path, 1), tmp_path / "page.html")
    page.open(target)
    sink = "(() => { try { document.body.innerHTML = '<b>x</b>'; return 'done'; } catch (e) { return e.name; } })()"
    assert page.evaluate(sink) == "TypeError"
    page.open(written(with_calls(tmp_path / "twin", 1), tmp_path / "twin.html", without_policy))
    assert page.evaluate(sink) == "done"


def test_texts_arrive_in_the_page_as_they_were_said(page: Page, tmp_path: Path) -> None:
    said = [*ATTACKS, "".join(map(chr, range(0x300))), "\u202eabc\u2066\u200b\ufeff", "\U0001f600", "x" * 5000]
    calls: list[Event] = [event for n, text in enumerate(said) for event in (asked(n, text),)]
    journal = write_at(tmp_path, "r1", [(0, event) for event in (started(), events.CellStarted(1, 1, ""), *calls)])
    page.open(written(journal, tmp_path / "page.html"))
    data = json.loads(page.evaluate("document.getElementById('data').textContent"))
    assert [data["texts"][call[4]] for call in data["runs"][0]["items"][0]["calls"]] == said
    codes = (
        "JSON.parse(document.getElementById('data').textContent).texts.map((t) => [...t].map((c) => c.codePointAt(0)))"
    )
    told = page.evaluate(codes)
    assert {"".join(map(chr, text)) for text in told} >= set(said)


def test_characters_that_hide_or_reorder_are_shown_by_name(page: Page, tmp_path: Path) -> None:
    code = "if user != '\u202eadmin\u2066':\u200b\u200b\u200b # \x1b[31m\x00 \U000e0041\ud800"
    journal = write_at(tmp_path, "r1", [(0, started()), (0, events.CellStarted(1, 1, code))])
    page.open(written(journal, tmp_path / "page.html"))
    assert page.text(".block.code") == ("if user != 'U+202EadminU+2066':U+200B ×3 # ESC[31mNUL U+E0041U+D800")
    assert page.evaluate("document.querySelector('.hidden-char').title") == "U+202E right-to-left override"
    # Nothing that hides is left in any text of the page, wherever it came from.
    page.open(written(everywhere(tmp_path, code), tmp_path / "page2.html"))
    explore(page)
    assert not page.evaluate(r"/[\u202e\u2066\u200b\x1b\0]/u.test(document.body.innerText + document.title)")


def test_twin_a_page_that_does_not_look_for_them_lets_them_through(page: Page, tmp_path: Path) -> None:
    journal = write_at(tmp_path, "r1", [(0, started()), (0, events.CellStarted(1, 1, "a\u202eb"))])
    weak = written(
        journal,
        tmp_path / "page.html",
        lambda text: without_policy(text.replace("const HIDDEN = /", "const HIDDEN = /(?!)")),
    )
    page.open(weak)
    assert page.text(".block.code") == "a\u202eb"


def test_a_flood_of_hidden_characters_does_not_make_a_flood_of_elements(page: Page, tmp_path: Path) -> None:
    flood = "a\u200bb\u202e" * 20_000
    journal = write_at(tmp_path, "r1", [(0, started()), (0, events.CellStarted(1, 1, flood))])
    page.open(written(journal, tmp_path / "page.html"))
    page.evaluate(EVERYTHING_OPEN)
    assert page.evaluate("document.querySelectorAll('*').length") < 3000
    assert not page.evaluate(
        r"/[\u200b\u202e]/u.test(document.body.textContent.replace(document.getElementById('data').textContent, ''))"
    )


def test_ten_thousand_sub_calls_are_usable(page: Page, tmp_path: Path) -> None:
    journal = with_calls(tmp_path, 10_000, prompt="Is this line about money? " * 40)
    took = page.open(written(journal, tmp_path / "page.html"))
    assert took < 60
    assert page.evaluate("document.querySelectorAll('*').length") < 2000
    assert "10,000 sub-calls" in page.text("main")
    assert "At most 10 sub-calls at once" in page.text("#timeline")
    # The last row is reached by one key, and only then made.
    page.evaluate("document.querySelector('.calls .list').focus()")
    page.press("End")
    page.press("Enter")
    assert "Sub-call 9999" in page.text(".detail")
    assert "word 9999" in page.text(".detail")
    page.evaluate("document.querySelector('input[type=search]').focus()")
    page.type("word 777")
    page.wait("document.querySelector('[role=status]').textContent === '11 found'")
    assert page.evaluate("document.querySelectorAll('*').length") < 2000


def test_thousands_of_retries_and_of_turns_do_not_make_thousands_of_elements(page: Page, tmp_path: Path) -> None:
    retries = [events.RetryScheduled("sub", 1, "rate_limited", 0.5) for _ in range(5000)]
    refused = [events.Refused(1, "llm_query", f"reason {n}", 0.0) for n in range(5000)]
    turns = [replied(n, "I go on.") for n in range(2, 3000)]
    first = [started(), replied(), events.CellStarted(1, 1, "x"), *retries, *refused]
    happened = [*first, events.CellFinished(1, 1, cell_result()), *turns]
    journal = write_at(tmp_path, "r1", [(n / 10, event) for n, event in enumerate(happened)])
    page.open(written(journal, tmp_path / "page.html"))
    assert page.evaluate("document.querySelectorAll('*').length") < 3000
    page.evaluate("document.querySelector('.notes').focus()")
    page.press("End")
    page.press("Enter")
    assert "reason 4999" in page.text(".notes + .detail")
    page.evaluate("document.querySelector('input[type=search]').focus()")
    page.type("reason 4321")
    page.wait("document.querySelector('[role=status]').textContent === '1 found'")
    page.click("#record .run > .more")
    assert page.complaints == []


def test_finding_leads_to_the_place_and_the_address_brings_it_back(page: Page, tmp_path: Path) -> None:
    target = written(with_calls(tmp_path, 300), tmp_path / "page.html")
    page.open(target)
    page.press("/")
    page.type("word 123")
    page.wait("document.querySelector('[role=status]').textContent === '1 found'")
    page.click(".found .row")
    assert "Sub-call 123" in page.text(".detail")
    place = page.evaluate("location.hash")
    assert place == "#r0-i1-c123"
    page.open(target, fragment=place)
    assert "word 123" in page.text(".detail")


@pytest.mark.parametrize("fragment", ["#r9-i9-c9", "#r0-i99999", "#r0-i1-c999999", "#<img>", "#%", "#r-1"])
def test_an_address_that_leads_nowhere_is_no_error(page: Page, tmp_path: Path, fragment: str) -> None:
    page.open(written(with_calls(tmp_path, 3), tmp_path / "page.html"), fragment=fragment)
    assert page.complaints == []


def choose(page: Page, label: str, value: str) -> None:
    box = f"document.querySelector('select[aria-label={label}]')"
    page.evaluate(f"(({box}).value = '{value}', ({box}).dispatchEvent(new Event('change')))")


def test_filters_tell_problems_and_the_slowest_first(page: Page, tmp_path: Path) -> None:
    page.open(
        written(write_at(tmp_path, "r1", [(n / 10, event) for n, event in enumerate(a_run())]), tmp_path / "page.html")
    )
    choose(page, "Kind", "problem")
    found = page.evaluate("[...document.querySelectorAll('.found .where')].map((node) => node.textContent)")
    assert set(found) == {"sub-call 2", "note"}
    choose(page, "Kind", "call")
    choose(page, "Order", "took")
    assert page.evaluate("[...document.querySelectorAll('.found .where')].map((node) => node.textContent)") == [
        "sub-call 1",
        "sub-call 2",
    ]


def test_a_child_run_opens_in_its_place(page: Page, tmp_path: Path) -> None:
    write_at(
        tmp_path,
        "child-1",
        [
            (0, started("A smaller question", 1)),
            (1, replied(1, "I think.")),
            (1, events.CellStarted(1, 1, "child_code()")),
            (2, events.CellFinished(1, 1, cell_result(stdout="deep words"))),
        ],
        "r1",
    )
    page.open(
        written(write_at(tmp_path, "r1", [(n / 10, event) for n, event in enumerate(a_run())]), tmp_path / "page.html")
    )
    assert "child_code()" not in page.text("main")
    page.press("/")
    page.type("deep words")
    page.wait("document.querySelector('[role=status]').textContent === '1 found'")
    page.click(".found .row")
    assert page.evaluate("document.querySelector('details.child').open")
    assert "child_code()" in page.text("details.child")


def test_a_run_cut_off_or_damaged_is_shown_as_far_as_it_goes(page: Page, tmp_path: Path) -> None:
    journal = write_at(tmp_path, "r1", [(n / 10, event) for n, event in enumerate(a_run()[:5])])
    page.open(written(journal, tmp_path / "cut.html"))
    assert "was cut off, or goes on" in page.text("header")
    journal.write_text(journal.read_text() + "not json\n")
    page.open(written(journal, tmp_path / "damaged.html"))
    assert "The journal is damaged" in page.text("header")
    assert "print(1)" in page.text("main")
    assert page.complaints == []


@pytest.mark.parametrize("width", [320, 390, 800, 1600])
def test_no_width_makes_the_page_scroll_sideways(page: Page, tmp_path: Path, width: int) -> None:
    page.look(width=width)
    page.open(written(everywhere(tmp_path, "word" * 500), tmp_path / "page.html"))
    explore(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_light_and_dark_follow_the_reader_and_both_can_be_read(page: Page, tmp_path: Path) -> None:
    target = written(write_at(tmp_path, "r1", [(0, event) for event in a_run()]), tmp_path / "page.html")
    papers = []
    for scheme in ("light", "dark"):
        page.look(scheme=scheme)
        page.open(target)
        papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert page.evaluate(CONTRAST) >= 4.5, scheme
    assert papers[0] != papers[1]


def test_everything_can_be_reached_and_has_a_name(page: Page, tmp_path: Path) -> None:
    page.open(written(with_calls(tmp_path, 30), tmp_path / "page.html"))
    tree = page.send("Accessibility.getFullAXTree")["nodes"]
    roles = [
        (node.get("role", {}).get("value"), node.get("name", {}).get("value", ""))
        for node in tree
        if not node["ignored"]
    ]
    for role in ("main", "navigation", "banner", "contentinfo", "search"):
        assert role in [name for name, _ in roles], role
    needs_name = {"listbox", "searchbox", "combobox", "button", "link", "region", "option"}
    assert [role for role, name in roles if role in needs_name and not name.strip()] == []
    assert [level for level, _ in roles].count("heading") >= 7
    # By the Tab key alone: the skip link comes first, the list of sub-calls is among the stops.
    stops = []
    for _ in range(40):
        page.press("Tab")
        stops.append(page.evaluate("document.activeElement.className || document.activeElement.tagName"))
    assert stops[0] == "skip"
    assert "list" in stops
    assert "timeline" in page.evaluate(
        "[...document.querySelectorAll('[tabindex=\"0\"]')].map((n) => n.getAttribute('class')).join(' ')"
    )
