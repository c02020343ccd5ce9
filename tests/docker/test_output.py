"""What a cell prints, shows and raises: capped at the source, whatever its size and shape."""

from __future__ import annotations

import textwrap
import threading
from typing import Self

import pytest

from orchestrator.kernel.result import ExecutionResult
from orchestrator.sandbox.engine import Engine
from orchestrator.text import printable
from tests.support.live import LADDER_S, OUTPUT, TIMEOUT, box, resident, value

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

# A mark says how much was cut; head and tail together keep to the policy.
MARK = 100
MIB = 1 << 20


def size(result: ExecutionResult) -> int:
    error = result.error
    texts = [result.stdout, result.stderr, result.result or ""]
    texts += [error.name, error.value, error.traceback] if error else []
    return max(map(len, texts))


class Watch:
    """Samples this process's memory on a thread while a block runs.

    Attributes:
        grown: bytes it was above its beginning at most.
    """

    def __enter__(self) -> Self:
        self._before, self.grown, self._stop = resident(), 0, threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.wait(0.01):
            self.grown = max(self.grown, resident() - self._before)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


async def test_what_was_printed_or_shown_takes_no_memory_of_the_box_afterwards(engine: Engine) -> None:
    code = """
        def used():
            with open("/proc/self/status") as file:
                return next(int(line.split()[1]) // 1024 for line in file if line.startswith("VmRSS"))
        before = used()
        for _ in range(1000): print("x" * 100_000); display("y" * 100_000)
    """
    async with box(engine, "limits.output_kb=4096") as opened:
        assert (await opened.execute(textwrap.dedent(code))).ok
        assert await value(opened, "used() - before") < 64  # MiB, of 200


class TestFloods:
    @pytest.mark.parametrize(
        "code",
        [
            "print('x' * 1_000_000_000)",
            "for _ in range(1_000_000): print('x' * 1000)",
            "import os\nfor _ in range(20_000): os.write(1, b'x' * 50_000)",
            "import subprocess; subprocess.run('yes | head -c 1000000000', shell=True)",
        ],
        ids=["one print", "many prints", "the descriptor", "a child"],
    )
    async def test_a_gigabyte_is_stopped_and_costs_the_host_nothing(self, engine: Engine, code: str) -> None:
        async with box(engine, "limits.memory_mb=1500") as opened:
            assert (await opened.execute("1")).ok
            with Watch() as watch:
                result = await opened.execute(code, TIMEOUT)
            assert result.status in ("output_limit", "oom")
            assert result.elapsed_s < TIMEOUT + LADDER_S
            assert result.truncated
            assert size(result) <= OUTPUT + MARK
            assert watch.grown < 64 * MIB
            assert await value(opened, "2") == 2

    async def test_two_hundred_thousand_tiny_messages_are_bounded(self, engine: Engine) -> None:
        code = """
from ipykernel.kernelapp import IPKernelApp
app = IPKernelApp.instance()
parent = app.kernel.get_parent("shell")
for n in range(200_000):
    app.kernel.session.send(app.iopub_thread, "stream", {"name": "stdout", "text": "xy"}, parent=parent)
"""
        async with box(engine) as opened:
            with Watch() as watch:
                result = await opened.execute(code, 3)
            assert result.elapsed_s < 3 + LADDER_S
            assert size(result) <= OUTPUT + MARK
            assert watch.grown < 64 * MIB

    async def test_an_endless_loop_of_prints_ends_at_its_deadline(self, engine: Engine) -> None:
        async with box(engine) as opened:
            result = await opened.execute("while True: print('x', flush=True)", 1)
            assert (result.status, result.state_lost) == ("timeout", False)
            assert result.elapsed_s < 1 + LADDER_S


class TestValues:
    @pytest.mark.parametrize(
        "code",
        [
            "'x' * 100_000_000",
            "b'x' * 10_000_000",
            "['x' * 30_000_000, 'y' * 30_000_000]",
            "class A:\n    def __repr__(self): return 'r' * 100_000_000\nA()",
            "raise ValueError('x' * 50_000_000)",
            "class E(Exception):\n    def __str__(self): return 'x' * 50_000_000\nraise E",
            "display('x' * 50_000_000)",
            "import sys; print('x' * 4_000_000, file=sys.stderr)",
            "def f(n): f(n + 1)\nf(0)",
        ],
        ids=["text", "bytes", "list", "object", "error", "its text", "display", "stderr", "recursion"],
    )
    async def test_a_huge_one_is_cut_marked_and_costs_the_host_nothing(self, engine: Engine, code: str) -> None:
        async with box(engine, "limits.memory_mb=1500") as opened:
            assert (await opened.execute("1")).ok
            with Watch() as watch:
                result = await opened.execute(code, TIMEOUT)
            assert result.status in ("ok", "error")
            assert not result.state_lost
            assert result.truncated
            assert OUTPUT // 4 <= size(result) <= OUTPUT + MARK
            assert watch.grown < 64 * MIB
            assert await value(opened, "2") == 2

    async def test_of_a_long_text_the_beginning_and_the_end_are_kept(self, engine: Engine) -> None:
        async with box(engine) as opened:
            result = await opened.execute("'begin' + 'x' * 10_000_000 + 'end'")
            assert result.result is not None
            assert result.result.startswith("'beginx")
            assert result.result.endswith("xend'")
            assert "cut here" in result.result
            result = await opened.execute("print('begin' + 'x' * 4_000_000 + 'end')")
            assert result.stdout.startswith("beginx")
            assert result.stdout.endswith("xend\n")
            lost = 4_000_009 - OUTPUT
            assert f"{lost:,} characters cut" in result.stdout

    async def test_output_within_the_limit_is_whole(self, engine: Engine) -> None:
        text = "é\n" * (OUTPUT // 2)
        async with box(engine) as opened:
            result = await opened.execute(f"print('é\\n' * {OUTPUT // 2}, end='')")
            assert (result.stdout, result.truncated) == (text, False)
            result = await opened.execute(f"for _ in range({OUTPUT // 2}): print('é', flush=True)")
            assert (result.stdout, result.truncated) == (text, False)


class TestShapes:
    async def test_only_text_leaves_of_what_is_displayed(self, engine: Engine) -> None:
        async with box(engine) as opened:
            code = """
from IPython.display import HTML, Javascript, display, publish_display_data
display(HTML("<script>alert(1)</script>"), Javascript("alert(2)"))
publish_display_data({"text/html": "<b>", "image/svg+xml": "<svg onload=x>"})
publish_display_data({"text/plain": "plain", "text/html": "<b>"})
class Rich:
    def __repr__(self): return "plain too"
    def _repr_mimebundle_(self, **_): return {"text/html": "<i>", "application/vnd.x": "y", "text/plain": "plain too"}
Rich()
"""
            result = await opened.execute(code)
            assert result.stdout.splitlines() == [
                "<IPython.core.display.HTML object>",
                "<IPython.core.display.Javascript object>",
                "plain",
            ]
            assert result.result == "plain too"

    @pytest.mark.parametrize(
        "code",
        [
            "publish_display_data({'text/html': 'x' * 100_000_000})",
            "publish_display_data({'text/plain': 'x' * 90_000_000})",
            "class A:\n    def _repr_mimebundle_(self, **_): return {'text/html': 'x' * 90_000_000}\ndisplay(A())",
        ],
        ids=["html", "text", "bundle"],
    )
    async def test_a_huge_picture_does_not_lose_the_text_beside_it(self, engine: Engine, code: str) -> None:
        async with box(engine, "limits.memory_mb=1500") as opened:
            imports = "from IPython.display import display, publish_display_data"
            result = await opened.execute(f"{imports}\n{code}\nprint('after')", TIMEOUT)
            assert (result.status, result.stdout[-6:]) == ("ok", "after\n")
            assert (await opened.execute("print('next')")).stdout == "next\n"

    async def test_escape_sequences_are_text_and_leave_nothing_when_shown(self, engine: Engine) -> None:
        async with box(engine) as opened:
            code = r"print('\x1b]0;title\x07\x1b[2J\x1b]52;c;aGk=\x07\x1b[31mred\x1b[0m \x9b5n \u202eltr \ud800 \0')"
            result = await opened.execute(code)
            assert result.ok
            result.stdout.encode()
            shown = printable(result.stdout)
            assert "red" in shown
            assert not set(shown) & {"\x1b", "\x07", "\x9b", "\u202e", "\0"}

    async def test_payloads_of_the_kernel_stay_in_the_box(self, engine: Engine) -> None:
        async with box(engine) as opened:
            result = await opened.execute(
                "get_ipython().set_next_input('rm -rf /')\nget_ipython().payload_manager and 1"
            )
            assert result.ok
            assert "rm -rf" not in str(result.to_dict())

    async def test_a_printed_answer_is_only_text(self, engine: Engine) -> None:
        async with box(engine) as opened:
            result = await opened.execute("print('FINAL(42)'); print('{\"final_answer\": 42}')")
            assert result.stdout == 'FINAL(42)\n{"final_answer": 42}\n'
