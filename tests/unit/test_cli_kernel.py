"""``rlm-sandbox kernel install`` writes what Jupyter looks for, or says in one line why not."""

from __future__ import annotations

import json
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from orchestrator.cli.main import main


def spec(path: Path, name: str = "rlm-sandbox") -> dict[str, object]:
    found: dict[str, object] = json.loads((path / "share/jupyter/kernels" / name / "kernel.json").read_text("utf-8"))
    return found


def test_it_names_our_program_our_provisioner_and_the_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kernel", "install", "--prefix", str(tmp_path), "--policy", "strict"]) == 0
    said = spec(tmp_path)
    argv = [sys.executable, "-m", "orchestrator.jupyter.kernel", "-f", "{connection_file}", "--policy", "strict"]
    assert said["argv"] == argv
    assert said["display_name"] == "Python (in a box, strict)"
    assert said["interrupt_mode"] == "message"
    provisioner = {"provisioner_name": "rlm-sandbox", "config": {"policy": "strict"}}
    assert said["metadata"] == {"debugger": False, "kernel_provisioner": provisioner}
    assert str(tmp_path) in capsys.readouterr().out
    (registered,) = entry_points(group="jupyter_client.kernel_provisioners", name="rlm-sandbox")
    assert registered.load().__name__ == "SandboxProvisioner"


def test_a_plain_one_needs_no_provisioner_and_a_file_is_named_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.toml").write_text("[limits]\npids = 64\n")
    assert main(["kernel", "install", "--prefix", ".", "--plain", "--name", "own", "--policy", "own.toml"]) == 0
    said = spec(tmp_path, "own")
    assert said["metadata"] == {"debugger": False}
    assert str(tmp_path / "own.toml") in said["argv"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--policy", "nonsense"], "no policy 'nonsense'"),
        (["--name", "two words"], "cannot install the kernel 'two words'"),
        (["--prefix", "/proc/nowhere"], "cannot install the kernel"),
    ],
)
def test_what_cannot_be_installed_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    assert main(["kernel", "install", "--prefix", str(tmp_path), *options]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert len(said.splitlines()) == 1
