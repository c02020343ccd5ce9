"""What a box can say of its own confinement, asked of this very machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sandbox_image import attest, wire


def test_the_facts_travel_as_strict_json_in_a_small_frame() -> None:
    facts = attest.gather()
    encoded = json.dumps(facts).encode()
    assert wire.loads(encoded) == facts
    assert len(encoded) < 1 << 20


def test_the_facts_are_those_of_this_process() -> None:
    facts = attest.gather()
    assert facts["pid"] == os.getpid()
    assert facts["status"]["Uid"].split() == [
        str(uid) for uid in (os.getuid(), os.geteuid(), os.getuid(), os.geteuid())
    ]
    assert facts["hostname"] == os.uname().nodename
    assert facts["environment"] == sorted(os.environ)
    assert set(facts["limits"]) >= {"Max open files", "Max core file size"}
    assert all(len(limit) == 2 for limit in facts["limits"].values())


def test_a_machine_without_a_filter_says_that_sockets_are_allowed() -> None:
    assert attest.gather()["inet_socket"] == "allowed"


def test_every_descriptor_is_named(tmp_path: Path) -> None:
    with (tmp_path / "left open").open("w") as file:
        assert f"{file.fileno()} {tmp_path / 'left open'}" in attest.gather()["descriptors"]


@pytest.mark.parametrize(
    ("line", "mount"),
    [
        (
            "128 111 0:61 / /tmp rw,nosuid,noexec,relatime - tmpfs tmpfs rw,size=65536k",
            ["/tmp", "tmpfs", "rw,nosuid,noexec,relatime", "rw,size=65536k"],  # noqa: S108
        ),
        ("111 65 0:52 / / ro,relatime master:3 - overlay overlay rw,a", ["/", "overlay", "ro,relatime", "rw,a"]),
        ("111 65 0:52 / / ro shared:1 master:3 - 9p none rw", ["/", "9p", "ro", "rw"]),
        ("", ["?", "?", "?", "?"]),
        ("garbage - garbage", ["?", "?", "?", "?"]),
    ],
    ids=["tmpfs", "overlay", "two optional fields", "empty", "garbage"],
)
def test_a_mount_is_read_as_proc_writes_it(line: str, mount: list[str]) -> None:
    assert attest._mount(line) == mount


def test_a_file_that_is_not_there_reads_as_nothing_and_a_long_one_in_part(tmp_path: Path) -> None:
    assert attest.read(str(tmp_path / "none")) == ""
    (tmp_path / "long").write_bytes(b"\xff" + b"x" * 100)
    assert attest.read(str(tmp_path / "long"), 3) == "\ufffdxx"


def test_memory_kills_are_counted_under_either_version_of_cgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/sys/fs/cgroup/memory.events": "low 0\noom 5\noom_kill 2\n"}
    monkeypatch.setattr(attest, "read", lambda path: files.get(path, ""))
    assert attest.oom_kills() == 2
    files = {"/sys/fs/cgroup/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"}
    assert attest.oom_kills() == 7
    files = {}
    assert attest.oom_kills() == 0
