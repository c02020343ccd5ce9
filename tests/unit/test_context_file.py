"""The contexts of a box in their file: as the host sends them, the supervisor writes them, and a kernel finds them."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import context as contexts
from orchestrator.context import Context
from orchestrator.prepared import send_context
from orchestrator.transport.mux import Mux
from sandbox_image.context_file import TRAILER, ContextFile
from sandbox_image.contexts import Contexts
from sandbox_image.lazy import LazyDict, LazyList, LazyText
from sandbox_image.wire import Kind
from tests.unit.test_context import anything

_numbers = itertools.count()


def memory_taken(given: Sequence[Context], memory_mb: int) -> int:
    taken = 0
    for context in given:
        taken += contexts.expected(context, memory_mb, taken).memory
    return taken


class IntoFile:
    """Stands in for the way to a box: what is sent, its supervisor's file takes at once."""

    def __init__(self, file: ContextFile) -> None:
        self._file = file
        self.intact = True

    async def send(self, kind: Kind, payload: bytes) -> None:
        if kind is Kind.CONTEXT_END:
            self._file.finish(json.loads(payload))
        else:
            self.intact = self._file.append(payload) and self.intact


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture
def file(folder: Path) -> Iterator[ContextFile]:
    made = ContextFile(f"{folder}/{next(_numbers)}")
    yield made
    made.close()


def give(file: ContextFile, context: Context | None, **how: Any) -> contexts.Taken:
    """Send a context; the file must have been as it was left."""
    line = IntoFile(file)

    async def send() -> contexts.Taken:
        return await send_context(cast("Mux", line), context, **{"memory_mb": 1024, **how})

    taken = anyio.run(send)
    assert line.intact
    return taken


def fresh(file: ContextFile) -> dict[str, Any]:
    """Return the namespace of a kernel that begins now."""
    namespace: dict[str, Any] = {}
    assert file.end is not None
    Contexts(file.descriptor, namespace).load(file.end)
    return namespace


def running(file: ContextFile) -> tuple[Contexts, dict[str, Any]]:
    """Return a kernel's contexts that are loaded, and its namespace."""
    namespace: dict[str, Any] = {}
    found = Contexts(file.descriptor, namespace)
    found.load(file.end or 0)
    return found, namespace


class TestContexts:
    @given(sent=st.lists(anything, min_size=1, max_size=4), first=st.integers(0, 3))
    def test_any_of_them_arrive_at_once_or_one_by_one(self, folder: Path, sent: list[Context], first: int) -> None:
        file = ContextFile(f"{folder}/{next(_numbers)}")
        for context in sent[:first]:
            give(file, context)
        found, namespace = running(file)
        for number, context in enumerate(sent[first:], first + 1):
            give(file, context)
            assert found.load_new()
            assert not found.load_new()
            assert namespace["context"] == context
            assert namespace.get("contexts", [context]) == sent[:number]
        expected = {"context": sent[-1]} | ({"contexts": sent} if len(sent) > 1 else {})
        assert fresh(file) == expected
        assert file.is_intact()
        file.close()

    def test_one_alone_makes_no_list(self, file: ContextFile) -> None:
        give(file, "one")
        assert fresh(file) == {"context": "one"}

    def test_a_box_may_have_begun_with_none_or_with_functions_alone(self, folder: Path) -> None:
        for tools in ((), ("lookup",)):
            file = ContextFile(f"{folder}/{next(_numbers)}")
            give(file, None, tools=tools)
            found = Contexts(file.descriptor, {})
            assert found.load(file.end or 0) == list(tools)
            give(file, "one", beside=0)
            assert fresh(file) == {"context": "one"}
            assert Contexts(file.descriptor, {}).load(file.end or 0) == list(tools)
            file.close()

    def test_those_that_are_there_are_not_made_again(self, file: ContextFile) -> None:
        give(file, ["a", "b"])
        found, namespace = running(file)
        first = namespace["context"]
        for further in ("two", {"three": "3"}):
            give(file, further)
            found.load_new()
        assert namespace["contexts"] == [["a", "b"], "two", {"three": "3"}]
        assert namespace["contexts"][0] is first

    @pytest.mark.parametrize("spoil", [{}, {"context": 5}, {"context": "tw"}], ids=["deleted", "another", "shortened"])
    def test_those_that_a_cell_replaced_are_read_again(self, file: ContextFile, spoil: dict[str, Any]) -> None:
        give(file, "one")
        found, namespace = running(file)
        del namespace["context"]
        namespace |= spoil
        give(file, "second")
        found.load_new()
        namespace["contexts"] = [None, *namespace["contexts"], "more"] if spoil else "gone"
        give(file, "three")
        found.load_new()
        assert namespace["contexts"] == ["one", "second", "three"]

    def test_an_answer_to_what_was_asked_before_is_none_to_the_next(self, file: ContextFile) -> None:
        give(file, "one")
        found, namespace = running(file)
        namespace["Final"] = "of one"
        assert not found.load_new()
        assert namespace["Final"] == "of one"
        give(file, "two")
        found.load_new()
        assert "Final" not in namespace

    @pytest.mark.parametrize(
        ("context", "kind", "text"),
        [("é" * 10, LazyText, None), (["é" * 10, "b"], LazyList, 0), ({"n": "é" * 10}, LazyDict, "n")],
        ids=["text", "list", "dict"],
    )
    def test_one_that_is_read_from_the_file_begins_behind_the_others(
        self, file: ContextFile, context: Any, kind: type[Any], text: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        give(file, "x" * 5000)
        monkeypatch.setattr(contexts, "lazy_most", lambda *_: 100)
        give(file, context)
        give(file, context)
        found: Any
        for found in fresh(file)["contexts"][1:]:
            assert isinstance(found, kind)
            assert (found if text is None else found[text])[:] == "é" * 10

    @pytest.mark.parametrize("tail", [b"x", b"\xff" * 16, b"\0" * 16], ids=["short", "huge", "empty"])
    def test_bytes_that_a_cell_added_are_no_context(self, file: ContextFile, tail: bytes) -> None:
        give(file, "one")
        found, namespace = running(file)
        os.write(file._write, tail)
        with pytest.raises(ValueError, match=r"changed by a cell|Expecting value"):
            found.load_new()
        assert namespace == {"context": "one"}


def write(file: ContextFile) -> None:
    os.pwrite(file._write, b"X", 0)


def append(file: ContextFile) -> None:
    os.pwrite(file._write, b"X", os.fstat(file._write).st_size + 100)


def truncate(file: ContextFile) -> None:
    os.ftruncate(file._write, 3)


def touch(file: ContextFile) -> None:
    os.fchmod(file._write, 0o600)  # which makes it writable, for a map that moves no time on


def past_a_tick(file: ContextFile, folder: Path) -> None:
    """Wait until a change would show: the time of one has the resolution of the system's clock tick."""
    shown = os.fstat(file._write).st_ctime_ns
    probe = ContextFile(f"{folder}/{next(_numbers)}")
    while True:
        os.fchmod(probe._write, 0o400)
        if os.fstat(probe._write).st_ctime_ns > shown:
            break
    probe.close()


@pytest.mark.parametrize("change", [write, append, truncate, touch])
class TestChanges:
    def test_a_change_is_seen_by_the_next_kernel_and_before_a_further_context(
        self, file: ContextFile, folder: Path, change: Callable[[ContextFile], None]
    ) -> None:
        give(file, "the context")
        past_a_tick(file, folder)
        assert file.is_intact()
        change(file)
        assert not file.is_intact()
        assert not file.append(b"a further one")

    def test_a_change_does_not_hide_behind_a_further_context(
        self, file: ContextFile, change: Callable[[ContextFile], None]
    ) -> None:
        """The twin looks at the time of the last change alone, and serves what a thread wrote meanwhile."""
        give(file, "the context")
        assert file.append(b"a further ")
        change(file)
        file.append(b'one{"kind":"text"}')
        file.finish(len(b'{"kind":"text"}'))
        assert file._is_untouched()
        assert file.is_intact() is (change is touch)  # the time is gone, and nothing else was changed

    def test_nor_in_the_middle_of_one(self, file: ContextFile, change: Callable[[ContextFile], None]) -> None:
        give(file, "the context")
        assert file.append(b"a further ")
        assert file.is_intact()
        change(file)
        assert file.is_intact() is (change is touch)


class TestTaken:
    def test_what_was_sent_is_counted_as_the_host_counts_it_ahead(self, file: ContextFile) -> None:
        sent: list[Context] = ["x" * 1000, ["é" * 500, "b"], {"a": "\U0001f40d" * 100}]
        memory = end = 0
        for number, context in enumerate(sent, 1):
            taken = give(file, context, beside=memory)
            memory += taken.memory
            assert memory == memory_taken(sent[:number], 1024)
            assert taken.file == (file.end or 0) - end - TRAILER.size
            end = file.end or 0

    def test_those_before_it_make_a_context_lazy_that_would_not_be_alone(self) -> None:
        one = "x" * (20 << 20)
        assert contexts.lazy_most(one, 128) is None
        assert contexts.lazy_most(one, 128, memory_taken([one], 128)) == 16 << 20
        assert memory_taken([one, one], 128) < 61 << 20
