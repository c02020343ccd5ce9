"""The examples of documents: none is passed over, and what does not come as shown is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import snippets
from tests.support.snippets import DocumentError, Snippet

DOCUMENT = """
# A document

```console
$ make it
```

## One

```python
print(1)
print(2)
```

```text
1
2
```

```python
pass
```

## Two

```toml
# ours.toml
[budget]
```

```console
$ cat ours.toml
# ours.toml
[budget]
$ echo "$HOME"
…
```
"""


def test_examples_are_found_under_their_headings_with_what_they_print() -> None:
    assert snippets.sections(DOCUMENT) == {
        "": [Snippet("command", "make it", "")],
        "One": [Snippet("python", "print(1)\nprint(2)\n", "1\n2\n"), Snippet("python", "pass\n", None)],
        "Two": [
            Snippet("file", "# ours.toml\n[budget]\n", name="ours.toml"),
            Snippet("command", "cat ours.toml", "# ours.toml\n[budget]\n"),
            Snippet("command", 'echo "$HOME"', "…\n"),
        ],
    }


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ("```\nls\n```\n", "nothing runs a block of no language"),
        ("```json\n{}\n```\n", "nothing runs a block of json"),
        ("```text\nprinted by nobody\n```\n", "nothing runs a block of text"),
        ("```python\npass\n```\n\nThen:\n\n```text\nlater\n```\n", "nothing runs a block of text"),
        ("```toml\n[budget]\n```\n", "the first line of a toml block is its name"),
        ("```console\nls\n```\n", "a console block begins with a command"),
        ("```python\npass\n", "a block has no end"),
    ],
)
def test_a_block_that_nothing_would_run_is_an_error(block: str, told: str) -> None:
    with pytest.raises(DocumentError, match=told):
        snippets.sections(block)


@pytest.mark.parametrize("title", ["One", "Two"])
def test_an_example_gives_what_it_gives(title: str, tmp_path: Path) -> None:
    for snippet in snippets.sections(DOCUMENT)[title]:
        printed = snippets.run(snippet, tmp_path, tmp_path)
        assert snippets.agrees(printed, snippet.shown or "")


def test_an_example_runs_without_the_keys_and_settings_of_whoever_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ANTHROPIC_API_KEY", "OPENAI_BASE_URL", "XDG_STATE_HOME", "OTEL_TRACES_EXPORTER"):
        monkeypatch.setenv(name, "mine")
    printed = snippets.run(Snippet("command", "env; echo home=$HOME; echo oops >&2"), tmp_path, tmp_path)
    assert "=mine" not in printed
    assert printed.endswith(f"home={tmp_path}\noops\n")


@pytest.mark.parametrize(
    ("printed", "shown", "fits"),
    [
        ("a\nb\n", "a\nb\n", True),
        ("a\nb", "a\nb\n", True),
        ("", "", True),
        ("took 0.31 s (ok)\n", "took … s (ok)\n", True),
        ("a\nb\nc\nd\n", "a\n…\nd\n", True),
        ("a\nd\n", "a\n…\nd\n", True),
        ("anything\nat all\n", "…\n", True),
        ("a\nb\n", "a\n", False),
        ("a\n", "a\nb\n", False),
        ("a\n", "", False),
        ("b\na\n", "a\nb\n", False),
        ("took 0.31 s\nTraceback\n", "took … s\n", False),
        ("took 0.31\ns (ok)\n", "took … s (ok)\n", False),
        ("axb\n", "a.b\n", False),
    ],
)
def test_what_is_shown_is_all_that_may_be_printed(printed: str, shown: str, fits: bool) -> None:  # noqa: FBT001 - a table
    assert snippets.agrees(printed, shown) is fits
