"""A box from its caller's side: cells, state, context, arguments, and exceptions that leave as themselves."""

from __future__ import annotations

import hashlib
from typing import Any

import anyio
import pytest

from orchestrator import context as contexts
from orchestrator import interpreter
from orchestrator.errors import ConfigurationError, ContextError, SandboxStartError
from orchestrator.interpreter import Sandbox
from orchestrator.sandbox import hardening
from orchestrator.sandbox.controls import CONTROLS
from orchestrator.sandbox.engine import Engine
from tests.support import policies
from tests.support.live import POLICY, TIMEOUT, box, value

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

# One character of four bytes makes a str take four for each: this one takes more than the box has.
TOO_WIDE = "\U0001f40d" + "x" * (POLICY.limits.memory_mb // 4 << 20) + "end"


class TestCells:
    async def test_state_persists_and_every_kind_of_output_is_told_apart(self, engine: Engine) -> None:
        async with box(engine) as opened:
            result = await opened.execute("import sys\nx = 41\nprint('out')\nprint('err', file=sys.stderr)\nx")
            assert (result.status, result.stdout, result.stderr, result.result) == ("ok", "out\n", "err\n", "41")
            error = await opened.execute("print('before')\nundefined")
            assert (error.status, error.stdout, error.state_lost) == ("error", "before\n", False)
            assert error.error is not None
            assert (error.error.name, error.error.value) == ("NameError", "name 'undefined' is not defined")
            assert "undefined" in error.error.traceback
            assert await value(opened, "x + 1") == 42

    @pytest.mark.parametrize(
        ("code", "result"),
        [
            ("import numpy, pandas\nint(pandas.DataFrame({'a': numpy.arange(4)})['a'].sum())", "6"),
            ("async def f():\n    return 5\nawait f()", "5"),
            ("x = !echo hi\nlist(x)", "['hi']"),
            (
                "import multiprocessing as m\nwith m.get_context('fork').Pool(2) as p: r = p.map(abs, [-1, -2])\nr",
                "[1, 2]",
            ),
            ("import asyncio\nasync def f():\n    return await asyncio.to_thread(lambda: 7)\nawait f()", "7"),
            ("import sqlite3\nsqlite3.connect(':memory:').execute('select 1').fetchone()", "(1,)"),
            ("import tempfile\nwith tempfile.TemporaryFile() as f: f.write(b'x')\n1", "1"),
            ("import zoneinfo\nstr(zoneinfo.ZoneInfo('Europe/Paris'))", "'Europe/Paris'"),
            ("", None),
            ("# nothing", None),
            ("x = 1;", None),
        ],
        ids=["pandas", "await", "shell", "pool", "threads", "sqlite", "files", "zones", "empty", "comment", "no value"],
    )
    async def test_ordinary_code_runs(self, engine: Engine, code: str, result: str | None) -> None:
        async with box(engine) as opened:
            found = await opened.execute(code, TIMEOUT)
            assert (found.status, found.result) == ("ok", result)

    @pytest.mark.parametrize(
        ("code", "name"),
        [
            ("input('password: ')", "StdinNotImplementedError"),
            ("import getpass\ngetpass.getpass()", "StdinNotImplementedError"),
            ("import sys\nsys.exit(3)", "SystemExit"),
            ("x = )", "SyntaxError"),
            ("raise BaseExceptionGroup('g', [KeyboardInterrupt()])", "BaseExceptionGroup"),
            ("raise KeyboardInterrupt", "KeyboardInterrupt"),
            ("class E(Exception):\n    def __str__(self): raise ValueError('no')\nraise E", "ValueError"),
        ],
        ids=["input", "getpass", "exit", "syntax", "group", "interrupt", "unprintable"],
    )
    async def test_code_that_fails_is_a_result_and_the_next_cell_runs(
        self, engine: Engine, code: str, name: str
    ) -> None:
        async with box(engine) as opened:
            result = await opened.execute(code, TIMEOUT)
            assert result.status == "error"
            assert result.error is not None
            assert result.error.name == name
            assert await value(opened, "1") == 1

    @pytest.mark.parametrize(
        "code",
        [
            "import sys; sys.stdout = None; print('x')",
            "import sys; sys.stdout = sys.stderr = 5",
            "import sys; sys.stdout.close(); sys.stderr.close()",
            "import os; os.close(0)",
            "import asyncio; asyncio.get_event_loop().call_soon(lambda: 1/0)",
            "get_ipython().display_formatter = None; 5",
            "import builtins; builtins.print = None; del builtins.len",
        ],
        ids=["no stdout", "no streams", "closed streams", "no stdin", "loop", "no display", "no builtins"],
    )
    async def test_a_cell_that_breaks_its_own_repl_does_not_hang_it(self, engine: Engine, code: str) -> None:
        async with box(engine) as opened:
            await opened.execute(code, TIMEOUT)
            after = await opened.execute("import sys; sys.stdout.write('still here'); None", TIMEOUT)
            assert after.status in ("ok", "error", "timeout", "died")
            assert not opened.gone

    async def test_what_a_thread_prints_after_its_cell_is_not_shown_in_the_next(self, engine: Engine) -> None:
        async with box(engine) as opened:
            code = """
import threading
from concurrent.futures import ThreadPoolExecutor
stop, late = threading.Event(), threading.Event()
def chatter():
    while not stop.wait(0.001):
        print("LATE")
        late.set()
threading.Thread(target=chatter).start()
pool = ThreadPoolExecutor(1)
pool.submit(chatter)
None
"""
            assert (await opened.execute(code, TIMEOUT)).ok
            result = await opened.execute(
                "late.clear(); late.wait(5); print('mine'); pool.submit(print, 'asked for now'); stop.set()", TIMEOUT
            )
            assert result.stdout.startswith("mine\n")
            assert "LATE" not in result.stdout

    async def test_what_children_print_is_shown(self, engine: Engine) -> None:
        async with box(engine) as opened:
            code = """
import multiprocessing, os, subprocess
subprocess.run(["/bin/echo", "a child"])
def work(n): print("a worker", n)
with multiprocessing.get_context("fork").Pool(1) as pool: pool.map(work, [1])
os.write(1, b"a descriptor\\n")
!echo a shell
"""
            result = await opened.execute(code, TIMEOUT)
            assert sorted(result.stdout.splitlines()) == ["a child", "a descriptor", "a shell", "a worker 1"]

    async def test_cells_that_are_asked_for_at_once_run_one_after_the_other(self, engine: Engine) -> None:
        async with box(engine) as opened, anyio.create_task_group() as tasks:
            await opened.execute("seen = []")
            for number in range(3):
                tasks.start_soon(opened.execute, f"seen.append({number}); len(seen)")
            await anyio.wait_all_tasks_blocked()
            assert sorted(await value(opened, "seen")) == [0, 1, 2]


class TestArguments:
    @pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), True, "5", None], ids=str)
    async def test_a_timeout_is_a_positive_number(self, engine: Engine, timeout: Any) -> None:
        async with box(engine) as opened:
            if timeout is None:
                assert (await opened.execute("1", timeout)).ok
                return
            with pytest.raises(ConfigurationError, match="positive number of seconds"):
                await opened.execute("1", timeout)
            assert (await opened.execute("1", 5)).ok

    async def test_a_timeout_is_at_most_the_policys(self, engine: Engine) -> None:
        async with box(engine, "limits.cell_timeout_s=0.3") as opened:
            result = await opened.execute("import time; time.sleep(60)", 50)
            assert (result.status, result.detail) == ("timeout", "it ran longer than 0.3 s: interrupted")

    async def test_a_cell_that_fits_no_frame_is_an_error_and_not_a_burnt_box(self, engine: Engine) -> None:
        async with box(engine) as opened:
            most = hardening.frame_bytes(POLICY) // 8
            result = await opened.execute("#" + "\x01" * most)
            assert result.status == "error"
            assert result.error is not None
            assert f"{most:,}" in result.error.value
            assert (await opened.execute("'" + "\x01" * (most - 3) + "';")).ok


class TestContext:
    @pytest.mark.parametrize(
        "context",
        [None, "", "héllo \U0001f40d\n\0", [], ["", "a", "é" * 1000], {}, {"é/n": "a", "": ""}],
        ids=["none", "empty", "text", "no documents", "list", "empty dict", "dict"],
    )
    async def test_it_is_there_as_it_was_given(self, engine: Engine, context: Any) -> None:
        async with box(engine, context=context) as opened:
            assert await value(opened, "globals().get('context')") == context

    async def test_a_large_one_arrives_whole_and_again_after_a_restart(self, engine: Engine) -> None:
        context = "0123456789 é\n" * 1_000_000
        digest = hashlib.sha256(context.encode()).hexdigest()
        check = "import hashlib; hashlib.sha256(context.encode()).hexdigest()"
        async with box(engine, context=context) as opened:
            assert await value(opened, check) == digest
            assert (await opened.execute("import os; os._exit(1)")).status == "died"
            assert await value(opened, check) == digest

    async def test_very_many_small_documents_arrive(self, engine: Engine) -> None:
        context = {f"a/rather/long/folder/name/document-{number:07}.txt": str(number) for number in range(100_000)}
        async with box(engine, context=context) as opened:
            check = "len(context), all(name.endswith(f'{int(text):07}.txt') for name, text in context.items())"
            assert await value(opened, check) == (100_000, True)

    @pytest.mark.parametrize(
        ("context", "words"),
        [
            (b"bytes", "not bytes"),
            ([1], "holds a int"),
            ("x" * (2 << 20), "context_mb = 1"),
            (["é" * 1_000_000], "context_mb = 1"),
            (["x"] * 100_000, "context_mb = 1"),
            ({f"{number:020}": "" for number in range(50_000)}, "context_mb = 1"),
        ],
        ids=["bytes", "numbers", "large", "large as UTF-8", "many", "long names"],
    )
    async def test_one_that_cannot_be_is_refused_before_a_container_is_made(
        self, engine: Engine, context: Any, words: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Engine, "create", lambda *_: pytest.fail("a container was made"))
        with pytest.raises(ContextError, match=words):
            async with box(engine, "limits.context_mb=1", context=context):
                pass

    async def test_the_largest_that_is_allowed_fits(self, engine: Engine) -> None:
        async with box(engine, "limits.context_mb=8", context="x" * (8 << 20)) as opened:
            assert await value(opened, "len(context)") == 8 << 20

    async def test_the_largest_that_its_memory_allows_fits(self, engine: Engine) -> None:
        settings = ("limits.memory_mb=256", "limits.context_mb=256")
        most = interpreter._room(POLICY.override(list(settings))) - 1000  # for its layout
        async with box(engine, *settings, context="x" * most) as opened:
            assert await value(opened, "work = bytearray(16 << 20); len(context), context.count('x')") == (most, most)

    async def test_one_whose_str_memory_cannot_hold_is_read_from_its_file(self, engine: Engine) -> None:
        async with box(engine, context=TOO_WIDE) as opened:
            found = await value(opened, "(len(context), context.count('x'), context[:2], context.find('end'))")
            assert found == (len(TOO_WIDE), len(TOO_WIDE) - 4, TOO_WIDE[:2], len(TOO_WIDE) - 3)
            assert await value(opened, "next(m.span() for m in context.finditer('x{3}end'))") == (
                len(TOO_WIDE) - 6,
                len(TOO_WIDE),
            )
            assert (await opened.execute("context[:]")).error is not None
            assert await value(opened, "len(context[10:1000])") == 990

    async def test_made_into_a_str_the_same_context_ends_the_box(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(contexts, "lazy_most", lambda *_: None)
        with pytest.raises(SandboxStartError):
            async with box(engine, context=TOO_WIDE):
                pass

    async def test_one_whose_file_memory_cannot_hold_is_refused(self, engine: Engine) -> None:
        memory_mb = POLICY.limits.memory_mb
        with pytest.raises(ContextError, match=f"memory_mb = {memory_mb} leaves"):
            async with box(engine, f"limits.context_mb={memory_mb}", context="x" * ((memory_mb - 90) << 20)):
                pass


class TestExceptions:
    @pytest.mark.parametrize(
        "error",
        [ZeroDivisionError("mine"), ExceptionGroup("mine", [ValueError(), KeyError()]), TimeoutError("mine")],
        ids=["plain", "group", "timeout"],
    )
    async def test_one_of_the_callers_leaves_as_itself(self, engine: Engine, error: Exception) -> None:
        with pytest.raises(type(error)) as caught:
            async with box(engine):
                raise error
        assert caught.value is error

    async def test_two_boxes_share_nothing_that_can_be_written(self, engine: Engine) -> None:
        async with box(engine) as first, box(engine) as second:
            await first.execute("open('/tmp/mark', 'w').write('x'); open('/dev/shm/mark', 'w').write('x'); mark = 1")
            look = "import os; os.listdir('/tmp'), os.listdir('/dev/shm'), 'mark' in globals()"
            assert await value(second, look) == ([], [], False)
            assert await value(first, "mark") == 1


async def test_what_is_known_of_a_box_is_told(engine: Engine) -> None:
    async with box(engine) as opened:
        info = opened.info
        record = engine.inspect(info.container)
        assert record["Image"] == info.image
        assert record["HostConfig"]["Runtime"] == info.runtime
        assert set(info.controls) == {control.id for control in CONTROLS}
        off = {name for name, found in info.controls.items() if "held" not in found}
        assert off <= policies.REPORTED
        assert info.opened_s > 0
        assert not opened.gone
    assert isinstance(opened, Sandbox)
