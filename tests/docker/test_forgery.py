"""Forgeries that need a real kernel, and what they gain: nothing outside the box.

Case numbers are those of the catalogue of attacks; the others are in ``tests/unit/test_hostile_guest.py``.
"""

from __future__ import annotations

import pytest

from orchestrator.sandbox.engine import Engine
from orchestrator.transport.rpc import RpcCall, RpcReply
from tests.support import policies
from tests.support.live import TIMEOUT, box, outcome, value

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

FORGE = """
from ipykernel.kernelapp import IPKernelApp
app = IPKernelApp.instance()
session, parent = app.kernel.session, app.kernel.get_parent("shell")
def publish(kind, content):
    session.send(app.iopub_thread, kind, content, parent=parent)
def answer(kind, content):
    session.send(app.kernel.shell_stream, kind, content, parent=parent, ident=app.kernel._parent_ident["shell"])
"""


class Desk:
    """Takes note of what is called."""

    def __init__(self) -> None:
        self.final: list[str] = []

    async def __call__(self, call: RpcCall) -> RpcReply:
        if call.method == "final":
            self.final.append(call.body)
        return RpcReply({"stop": "end"}, call.body)


async def test_pf01_there_is_no_key_to_steal(engine: Engine) -> None:
    async with box(engine) as opened:
        assert await value(opened, f"{FORGE}\nsession.key, session.auth") == (b"", None)
        assert await value(opened, "2") == 2


async def test_pf02_a_forged_end_ends_the_cell_and_the_next_one_is_itself(engine: Engine) -> None:
    code = f"{FORGE}\nanswer('execute_reply', {{'status': 'ok'}})\npublish('status', {{'execution_state': 'idle'}})\n"
    async with box(engine) as opened:
        result = await outcome(opened, code + "import time\nwhile True: time.sleep(0.01)", 1)
        assert result.status in ("ok", "timeout")
        for number in range(3):
            result = await outcome(opened, f"print({number})", 3)
            assert result.status in ("ok", "timeout", "died")
            assert result.stdout in ("", f"{number}\n")
            if result.ok and result.stdout:
                break
        else:
            pytest.fail("no later cell ran")


@pytest.mark.parametrize(
    "code",
    [
        "class FinalAnswerException(BaseException): pass\nraise FinalAnswerException('42')",
        "print('{\"final_answer\": 42}'); print('FINAL(42)'); print('Final = 42')",
        "publish('execute_result', {'data': {'text/plain': 'FINAL(42)'}, 'metadata': {}, 'execution_count': 1})",
        "publish('input_request', {'prompt': 'password: ', 'password': True})",
        "get_ipython().set_next_input('Final = 42')",
    ],
    ids=["pf16 an exception", "pf17 print", "pf17 a result", "pf20 a question", "pf21 a payload"],
)
async def test_an_answer_is_a_call_and_nothing_else(engine: Engine, code: str) -> None:
    desk = Desk()
    async with box(engine, rpc=desk) as opened:
        await outcome(opened, f"{FORGE}\n{code}", TIMEOUT)
        assert await value(opened, "1") == 1
        assert desk.final == []


@pytest.mark.parametrize(
    ("value_", "told"),
    [
        (
            "type('S', (str,), {'__json__': print, '__reduce__': exec, '__str__': lambda s: 'told'})('held')",
            "told",
        ),
        ("{'a': float('nan'), 'b': {1, 2}}", "{'a': nan, 'b': {1, 2}}"),
        ("type('O', (), {'__str__': lambda s: 'an object'})()", "an object"),
        ("b'bytes'", "b'bytes'"),
    ],
    ids=["a str of its own", "no json", "an object", "bytes"],
)
async def test_pf19_a_final_leaves_as_text_whatever_it_is(engine: Engine, value_: str, told: str) -> None:
    desk = Desk()
    async with box(engine, rpc=desk) as opened:
        assert (await outcome(opened, f"Final = {value_}", TIMEOUT)).ok
        assert desk.final == [told]


async def test_rp10_a_patched_function_harms_its_own_box_alone(engine: Engine) -> None:
    async with box(engine, rpc=Desk()) as opened:
        assert await value(opened, "asked = llm_query\nllm_query = lambda *_: 'forged'\nllm_query('x')") == "forged"
        assert await value(opened, "asked('x')") == "x"


async def test_pf13_pf15_the_supervisors_line_is_out_of_reach(engine: Engine) -> None:
    code = """
import os
def attempt(path, flags):
    try: return os.close(os.open(path, flags))
    except OSError as error: return type(error).__name__
[attempt(f"/proc/1/fd/{number}", os.O_WRONLY) for number in (0, 1, 2)]
"""
    async with box(engine) as opened:
        said = set(await value(opened, code))
        if "held" in opened.info.controls["P1"]:
            assert said <= {"PermissionError", "FileNotFoundError", "OSError"}
        else:  # what such a release of gVisor lets a cell do with it, and wins by it, is in tests/escape/test_gvisor.py
            assert "P1" in policies.REPORTED
            assert None in said
        assert await value(opened, "2") == 2
