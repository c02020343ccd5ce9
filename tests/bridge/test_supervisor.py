"""The real supervisor and the real kernel: context, cells, deaths and calls, without a container."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from orchestrator.errors import SandboxGoneError, SandboxStartError, ungrouped
from orchestrator.kernel.client import KernelClient
from orchestrator.kernel.result import ExecutionResult
from orchestrator.sandbox import hardening
from orchestrator.transport.rpc import RpcCall, RpcRefusal, RpcReply
from sandbox_image import wire
from sandbox_image.wire import Channel, Frame, Kind
from tests.support.bridge import POLICY, START_S, ProcessStream, bridge, supervisor

pytestmark = pytest.mark.anyio

TIMEOUT = 30
OUTPUT = POLICY.limits.output_kb * 1024


async def run(client: KernelClient, code: str, timeout_s: float = TIMEOUT) -> ExecutionResult:
    return await client.execute(code, timeout_s, START_S)


class Peer:
    """The host's end by hand, for what the client would never send."""

    def __init__(self, stream: ProcessStream) -> None:
        self._stream = stream
        self._decoder = wire.Decoder(
            hardening.frame_bytes(POLICY), frozenset(kind for kind in Kind if kind >= Kind.KERNEL)
        )
        self._frames: list[Frame] = []

    async def send(self, kind: Kind, payload: bytes = b"") -> None:
        await self._stream.send(wire.encode(kind, payload))

    async def request(self, kind: str, **content: Any) -> str:
        identity = f"{kind}-{id(content)}"
        header = {"msg_id": identity, "msg_type": kind, "session": "s", "username": "u", "date": "", "version": "5.3"}
        parts = [b"<IDS|MSG>", b"", *(json.dumps(part).encode() for part in (header, {}, {}, content))]
        await self.send(Kind.KERNEL, wire.pack_parts(Channel.SHELL, parts))
        return identity

    async def execute(self, code: str) -> str:
        return await self.request("execute_request", code=code, silent=False, store_history=False, user_expressions={})

    async def receive(self, *kinds: Kind) -> Frame:
        with anyio.fail_after(START_S):
            while True:
                while self._frames:
                    frame = self._frames.pop(0)
                    if frame.kind in kinds:
                        return frame
                data = await self._stream.receive()
                if not data:
                    raise EOFError
                self._frames += self._decoder.feed(data)

    async def replied(self) -> tuple[str, dict[str, Any]]:
        """Return the type and content of the next message on the shell channel."""
        while True:
            channel, parts = wire.unpack_parts((await self.receive(Kind.KERNEL)).payload)
            if channel is Channel.SHELL:
                return json.loads(parts[2])["msg_type"], json.loads(parts[5])

    async def until_ready(self) -> None:
        await self.send(Kind.CONTEXT_END, b"null")
        await self.receive(Kind.READY)


# As a str it takes 68 MiB, which is more than half of 128.
WIDE = "\U0001f40d" + "x" * (17 << 20) + "end"


class TestStart:
    async def test_the_first_thing_said_is_what_it_saw_of_itself(self, tmp_path: Path) -> None:
        async with supervisor(tmp_path) as (stream, _):
            hello = wire.loads((await Peer(stream).receive(Kind.HELLO)).payload)
            assert hello["protocol"] == wire.PROTOCOL_VERSION
            assert hello["pid"] == 1
            assert "ANTHROPIC_API_KEY" not in hello["environment"]

    async def test_the_end_of_its_input_is_its_end(self, tmp_path: Path) -> None:
        async with supervisor(tmp_path) as (stream, process):
            await Peer(stream).receive(Kind.HELLO)
            await stream.aclose()
            with anyio.fail_after(START_S):
                await process.wait()

    async def test_a_host_that_breaks_the_protocol_is_left(self, tmp_path: Path) -> None:
        async with supervisor(tmp_path) as (stream, process):
            await Peer(stream).receive(Kind.HELLO)
            await stream.send(b"\xff" * 10)
            with anyio.fail_after(START_S):
                assert await process.wait() != 0

    async def test_a_kernel_that_cannot_start_is_given_up_after_a_few_tries(self, tmp_path: Path) -> None:
        async with supervisor(tmp_path) as (stream, process):
            peer = Peer(stream)
            await peer.send(Kind.CONTEXT, b'{"kind":"nonsense"}')
            await peer.send(Kind.CONTEXT_END, b"19")
            tries = 0
            while (frame := await peer.receive(Kind.DIED, Kind.READY, Kind.FAULT)).kind is Kind.DIED:
                tries += 1
                assert wire.loads(frame.payload)["ready"] is False
            assert frame == (Kind.FAULT, b'{"fault":"no_start"}')
            assert 1 < tries < 10
            with anyio.fail_after(START_S):
                await process.wait()

    async def test_the_client_tells_it_as_a_start_that_failed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("orchestrator.context.layout", lambda _context, _sizes: {"kind": "nonsense"})

        async def start() -> None:
            with ungrouped():
                async with bridge(tmp_path, "x"):
                    pass

        with pytest.raises(SandboxStartError, match="kernel does not start"):
            await start()


class TestContext:
    @pytest.mark.parametrize(
        "context",
        [
            None,
            "",
            "héllo \U0001f40d",
            [],
            ["", "a", "é"],
            {},
            {"é/name": "a", "": ""},
            {"n" * 100_000: "x" * 3_000_000},
        ],
        ids=["none", "empty", "text", "no documents", "list", "empty dict", "dict", "large"],
    )
    async def test_it_arrives_as_it_was_given_and_again_in_a_fresh_kernel(self, tmp_path: Path, context: Any) -> None:
        found = "hashlib.sha256(repr(globals().get('context')).encode()).hexdigest()"
        check = f"import hashlib; {found} == {digest(context)!r}"
        async with bridge(tmp_path, context) as (client, _):
            assert (await run(client, check)).result == "True"
            assert (await run(client, "import os; os._exit(0)")).status == "died"
            assert (await run(client, check)).result == "True"

    @pytest.mark.parametrize(
        ("context", "check"),
        [
            (WIDE, "(len(context), context[7], context.find('end'), type(context).__name__)"),
            ([WIDE, "b"], "(len(context[0]), context[0][7], context[0].find('end'), type(context[0]).__name__)"),
            ({"a": WIDE, "b": "b"}, "(len(context['a']), context['a'][7], context['a'].find('end'), 'LazyText')"),
        ],
        ids=["text", "list", "dict"],
    )
    async def test_one_that_memory_cannot_hold_is_read_from_its_file(
        self, tmp_path: Path, context: Any, check: str
    ) -> None:
        policy = POLICY.override(["limits.memory_mb=128"])
        async with bridge(tmp_path, context, policy=policy) as (client, _):
            for _ in range(2):
                assert (await run(client, check)).result == repr((len(WIDE), WIDE[7], len(WIDE) - 3, "LazyText"))
                assert (await run(client, "import os; os._exit(0)")).status == "died"

    async def test_one_that_was_changed_is_not_served_again(self, tmp_path: Path) -> None:
        async with bridge(tmp_path, "the truth") as (client, _):
            result = await run(client, "import os; os.fchmod(4, 0o600); open('/proc/self/fd/4', 'w').write('a lie')")
            assert result.ok
            await run(client, "os._exit(0)")
            with pytest.raises(SandboxGoneError, match="context was changed"):
                await run(client, "context")


def digest(context: Any) -> str:
    return hashlib.sha256(repr(context).encode()).hexdigest()


class TestCells:
    async def test_state_output_result_and_error(self, tmp_path: Path) -> None:
        async with bridge(tmp_path) as (client, _):
            first = await run(client, "import sys\nx = 41\nprint('out')\nprint('err', file=sys.stderr)\nx")
            assert (first.status, first.stdout, first.stderr, first.result) == ("ok", "out\n", "err\n", "41")
            assert (await run(client, "x + 1")).result == "42"
            error = await run(client, "print('before')\n1/0")
            assert (error.status, error.stdout, error.state_lost) == ("error", "before\n", False)
            assert error.error is not None
            assert error.error.name == "ZeroDivisionError"
            assert "1/0" in error.error.traceback
            assert "\x1b" not in error.error.traceback
            assert (await run(client, "x")).result == "41"

    async def test_what_a_killed_cell_printed_comes_with_its_cut_marked(self, tmp_path: Path) -> None:
        # The call gives what was printed the time to leave the process that is about to die.
        text = f"'a' * {OUTPUT} + 'b' * {OUTPUT} + 'end'"
        code = f"import os\nprint({text}, flush=True)\nllm_query('0')\nos.kill(os.getpid(), 9)"
        async with bridge(tmp_path, rpc=Desk()) as (client, _):
            result = await run(client, code)
            assert (result.status, result.state_lost, result.truncated) == ("died", True, True)
            assert result.stdout.startswith("aaa")
            assert "characters cut" in result.stdout
            assert result.stdout.endswith("bend\n")

    async def test_an_interrupt_keeps_the_variables(self, tmp_path: Path) -> None:
        async with bridge(tmp_path) as (client, _):
            await run(client, "x = 1")
            result = await run(client, "import time\nwhile True: time.sleep(0.01)", 0.2)
            assert (result.status, result.state_lost) == ("timeout", False)
            assert (await run(client, "x")).result == "1"

    async def test_what_ignores_interrupts_is_killed_with_all_its_children(self, tmp_path: Path) -> None:
        code = (
            "import os, signal, subprocess\n"
            "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
            "subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
            "open('left behind', 'w').close()\n"
            "while True: pass"
        )
        async with bridge(tmp_path) as (client, _):
            result = await run(client, code, 0.5)
            assert (result.status, result.state_lost) == ("timeout", True)
            count = "import os; sum(name.isdigit() for name in os.listdir('/proc'))"
            assert (await run(client, count)).result == "2"
            assert (await run(client, "os.listdir(os.getcwd())")).result == "[]"

    async def test_a_second_kernel_inherits_no_descriptor_from_the_supervisor(self, tmp_path: Path) -> None:
        # A kernel sees 0 to 4 as it was given them, and its own from 5 on; one of the supervisor's would be a file,
        # a pipe or a socket that has no other end in this process.
        code = """
import os
def held():
    return sorted(os.readlink(f"/proc/self/fd/{n}").split(":")[0] for n in os.listdir("/proc/self/fd")
                  if os.path.lexists(f"/proc/self/fd/{n}"))
repr(held())
"""
        async with bridge(tmp_path, "x") as (client, _):
            first = (await run(client, code)).result
            await run(client, "os._exit(0)")
            assert (await run(client, code)).result == first


class TestDebris:
    @pytest.mark.parametrize(
        "code",
        [
            "os.makedirs('a/b/c'); open('a/b/c/f', 'w').close(); os.chmod('a/b', 0); os.chmod('a', 0)",
            "for _ in range(3000):\n    os.mkdir('d'); os.chdir('d')",
            "os.symlink('/etc', 'link'); os.mkfifo('fifo'); os.mkdir('x'); os.symlink('..', 'x/up')",
            "open(os.environ['IPYTHONDIR'] + '/startup/00.py', 'w').write('poison = 1')",
            "os.makedirs(os.environ['IPYTHONDIR'] + '/../k2-1/x'); os.chmod(os.environ['IPYTHONDIR'] + '/../k2-1', 0)",
            "open('/dev/shm/x', 'w').close()",
        ],
        ids=["closed folders", "a deep folder", "links and pipes", "a start-up file", "the next socket's place", "shm"],
    )
    async def test_nothing_a_dead_kernel_left_is_there_for_the_next(self, tmp_path: Path, code: str) -> None:
        look = (
            "import os\n"
            "sorted(os.listdir('.') + os.listdir('/dev/shm')), 'poison' in globals(), os.path.isdir('/etc/init.d')"
        )
        async with bridge(tmp_path) as (client, _):
            assert (await run(client, f"import os\n{code}")).ok
            assert (await run(client, "os._exit(0)")).status == "died"
            assert (await run(client, look)).result == "([], False, True)"


class Desk:
    """Answers calls with as many bytes as they ask for; those of ``hang`` never."""

    def __init__(self) -> None:
        self.arrived = anyio.Event()
        self.calls = 0

    async def __call__(self, call: RpcCall) -> RpcReply:
        self.calls += 1
        self.arrived.set()
        self.arrived = anyio.Event()
        if call.body == "hang":
            await anyio.sleep_forever()
        if call.method == "budget":
            raise RpcRefusal("calls", "none left", limit=0)
        return RpcReply({}, "é" * int(call.body or 0))


class TestCalls:
    async def test_a_call_goes_to_the_host_and_its_answer_comes_back(self, tmp_path: Path) -> None:
        async with bridge(tmp_path, rpc=Desk()) as (client, _):
            assert (await run(client, "llm_query('5')")).result == "'ééééé'"
            large = await run(client, "len(llm_query('1900000'))")
            assert large.result == "1900000"
            refused = await run(client, "try: budget()\nexcept QueryRefused as error: print(error.reason, error.limit)")
            assert refused.stdout == "calls 0\n"

    async def test_an_interrupt_ends_a_call_that_hangs_and_the_next_one_works(self, tmp_path: Path) -> None:
        async with bridge(tmp_path, rpc=Desk()) as (client, mux):
            result = await run(client, "llm_query('hang')", 0.5)
            assert (result.status, result.state_lost) == ("timeout", False)
            mux.cancel_calls()
            assert (await run(client, "llm_query('1')")).result == "'é'"

    async def test_threads_that_hang_in_calls_do_not_use_up_the_window(self, tmp_path: Path) -> None:
        window = POLICY.models.window - 1  # one place is kept for what is answered at once
        # A call that came too late for its cell would be refused before it is sent.
        code = f"""
import threading, time
sent = get_ipython().kernel.guest_api._connection._waiting
while sent: time.sleep(0.01)
for _ in range({window}): threading.Thread(target=llm_query, args=('hang',)).start()
while len(sent) < {window}: time.sleep(0.01)
"""
        desk = Desk()
        async with bridge(tmp_path, rpc=desk) as (client, mux):
            for round_ in range(1, 4):
                assert (await run(client, code)).ok
                with anyio.fail_after(TIMEOUT):
                    while desk.calls < round_ * window:  # as many more than the window would never arrive
                        await desk.arrived.wait()
                mux.cancel_calls()
            assert (await run(client, "llm_query('1')")).result == "'é'"

    async def test_a_kernel_killed_in_the_middle_of_a_call_does_not_spoil_the_next_ones(self, tmp_path: Path) -> None:
        code = "import threading, os\nthreading.Thread(target=llm_query, args=('x' * 3_900_000,)).start()\nos._exit(0)"
        async with bridge(tmp_path, rpc=Desk()) as (client, _):
            for _ in range(3):
                assert (await run(client, code)).status == "died"
            assert (await run(client, "llm_query('2')")).result == "'éé'"

    async def test_an_answer_begun_for_a_dead_kernel_does_not_reach_the_next(self, tmp_path: Path) -> None:
        async with supervisor(tmp_path) as (stream, _):
            peer = Peer(stream)
            await peer.until_ready()
            await peer.send(Kind.RPC, b"\x00" + wire.pack_message({"id": "0" * 32, "result": {}}, b"begun"))
            await peer.send(Kind.RESTART, b'{"generation":1}')
            await peer.receive(Kind.DIED)
            await peer.send(Kind.RPC, b"\x00 while there is none")
            await peer.receive(Kind.READY)
            await peer.send(Kind.RPC, b"\x01 and ended for the next")
            await peer.execute("llm_query('x')")
            call = wire.Assembler(1 << 20).feed((await peer.receive(Kind.RPC)).payload)
            assert call is not None
            head, _ = wire.unpack_message(call)
            await peer.send(Kind.RPC, b"\x01" + wire.pack_message({"id": head["id"], "result": {}}, b"answer"))
            kind, content = await peer.replied()
            assert (kind, content["status"]) == ("execute_reply", "ok")

    async def test_a_kernel_that_reads_no_answers_is_not_read_from_for_ever(self, tmp_path: Path) -> None:
        # As many answers as would fill many times what the supervisor holds; none is read, all further calls wait.
        code = """
import os, select, socket
from sandbox_image import wire
line = socket.socket(fileno=os.dup(3))
line.setblocking(False)
message = wire.pack_message({"id": "0" * 32, "method": "budget"}, b"x" * 1000)
data = b"".join(wire.encode_fragments(message)) * 5000
while data and select.select([], [line], [], 0.5)[1]:
    data = data[line.send(data):]
assert data, "all calls were taken"
"""
        async with supervisor(tmp_path) as (stream, _):
            peer = Peer(stream)
            await peer.until_ready()
            for _ in range(12):  # 12 MB that the kernel's reader, which has not started, never takes
                await peer.send(Kind.RPC, b"\x00" + b"x" * 1_000_000)
            await peer.execute(code)
            kind, content = await peer.replied()
            assert (kind, content["status"]) == ("execute_reply", "ok")
