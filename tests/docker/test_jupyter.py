"""Jupyter's own client, with cells that run in a box."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

from orchestrator.sandbox import container
from orchestrator.sandbox.engine import Engine
from tests.support.live import POLICY, TIMEOUT

pytestmark = pytest.mark.docker


def install(prefix: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "orchestrator", "kernel", "install", "--prefix", str(prefix), "--json", *options]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(said.stdout)
    return found


class Notebook:
    """One client of one kernel."""

    def __init__(self, prefix: Path, name: str) -> None:
        specs = KernelSpecManager(kernel_dirs=[str(prefix / "share/jupyter/kernels")])
        self.manager = KernelManager(kernel_name=name, kernel_spec_manager=specs)
        self.manager.start_kernel()
        self.client: BlockingKernelClient = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=TIMEOUT)

    def run(self, code: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return the reply to a cell, and what it published."""
        published: list[dict[str, Any]] = []
        reply = self.client.execute_interactive(code, timeout=TIMEOUT, allow_stdin=False, output_hook=published.append)
        return reply["content"], [
            message["content"] for message in published if "execution_state" not in message["content"]
        ]

    def shut_down(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel()
        self.manager.cleanup_resources()
        self.manager.context.destroy(linger=0)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prefix")
    policy = folder / "small.toml"
    limits = POLICY.limits
    policy.write_text(f"[limits]\nmemory_mb = {limits.memory_mb}\n[sandbox]\nruntime = '{POLICY.sandbox.runtime}'\n")
    install(folder, "--policy", str(policy))
    install(folder, "--policy", str(policy), "--name", "plain", "--plain")
    return folder


@pytest.fixture(params=["rlm-sandbox", "plain"])
def notebook(engine: Engine, prefix: Path, request: pytest.FixtureRequest) -> Iterator[Notebook]:
    opened = Notebook(prefix, request.param)
    yield opened
    opened.shut_down()


def test_a_client_runs_cells_in_a_box_and_variables_stay(notebook: Notebook) -> None:
    reply, _ = notebook.run("import os, socket\nx = 6 * 7")
    assert reply["status"] == "ok"
    user = int(POLICY.sandbox.user.split(":")[0])
    reply, published = notebook.run(f"print('printed')\nx, os.getuid() >= {user}, socket.gethostname()")
    assert reply["status"] == "ok"
    texts = [content.get("text") or content.get("data", {}).get("text/plain") for content in published]
    assert texts[1:] == ["printed\n", "(42, True, 'sandbox')"]


def test_an_error_and_a_dead_interpreter_are_told_and_the_next_cell_runs(notebook: Notebook) -> None:
    reply, published = notebook.run("1 / 0")
    assert (reply["status"], reply["ename"]) == ("error", "ZeroDivisionError")
    assert any("ZeroDivisionError" in line for line in published[-1]["traceback"])
    reply, _ = notebook.run("import os\nos._exit(3)")
    assert (reply["status"], reply["ename"]) == ("error", "died")
    assert notebook.run("'again'")[0]["status"] == "ok"


def test_an_interrupt_ends_the_cell_and_keeps_its_variables(notebook: Notebook) -> None:
    notebook.run("import time\nkept = 1")
    sent = notebook.client.execute("print('began', flush=True)\nwhile True: time.sleep(0.01)")
    # The client hears "busy" when the kernel has the cell; an interrupt before that would be for none.
    while notebook.client.get_iopub_msg(timeout=TIMEOUT)["content"].get("execution_state") != "busy":
        pass
    deadline = time.monotonic() + TIMEOUT
    reply = None
    while reply is None and time.monotonic() < deadline:
        notebook.manager.interrupt_kernel()
        try:
            reply = notebook.client.get_shell_msg(timeout=1)
        except Exception:  # noqa: BLE001, S112 - queue.Empty: the box was not told yet
            continue
    assert reply is not None
    assert reply["parent_header"]["msg_id"] == sent
    assert reply["content"]["status"] == "error"
    assert notebook.run("kept")[0]["status"] == "ok"


def test_the_box_is_gone_with_its_kernel(engine: Engine, prefix: Path) -> None:
    opened = Notebook(prefix, "rlm-sandbox")
    opened.run("1")
    process = opened.manager.provisioner.process  # type: ignore[union-attr]
    assert process is not None
    mine = [
        item
        for item in engine.containers(container.OWNER_LABEL)
        if f":{process.pid}:" in item.labels[container.OWNER_LABEL]
    ]
    assert len(mine) == 1
    opened.shut_down()
    left = {item.id for item in engine.containers(container.OWNER_LABEL)}
    assert mine[0].id not in left
