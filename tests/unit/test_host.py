"""What the host gives besides: read from its files, judged, and said with what it costs that it is not there."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.sandbox import host
from orchestrator.sandbox.engine import EngineInfo
from orchestrator.sandbox.host import MODULES, Sight

ENGINE = EngineInfo("28.0", "1.3.3", "6.12.90", "2", "systemd", (), ("runc",), "runc", "x86_64", "Debian")
GOOD = {
    "kernel.unprivileged_bpf_disabled": "2",
    "kernel.io_uring_disabled": "2",
    "vm.unprivileged_userfaultfd": "0",
    "kernel.yama.ptrace_scope": "1",
    "kernel.kptr_restrict": "2",
    "kernel.dmesg_restrict": "1",
    "kernel.core_pattern": "core",
}
SEEN = Sight(GOOD, dict.fromkeys(MODULES, "barred"), smt=False)
BEST = replace(ENGINE, security_options=("name=apparmor", "name=userns", "name=seccomp,profile=builtin"))


def states(engine: EngineInfo, sight: Sight | None, *, own_kernel: bool = False) -> dict[str, str]:
    return {f"{item.id} {item.what}": item.state for item in host.advise(engine, sight, own_kernel=own_kernel)}


def test_a_host_that_gives_everything_is_told_so() -> None:
    assert set(states(BEST, SEEN, own_kernel=True).values()) == {"on"}


def test_one_that_gives_nothing_is_told_what_each_costs_and_how_it_is_had() -> None:
    bad = dict.fromkeys(GOOD, "0") | {"vm.unprivileged_userfaultfd": "1", "kernel.core_pattern": "|/usr/bin/handler"}
    engine = replace(ENGINE, cgroup_version="1")
    advice = host.advise(engine, Sight(bad, dict.fromkeys(MODULES, "loadable"), smt=True), own_kernel=False)
    assert {item.state for item in advice} == {"off"}
    assert all(item.cost and item.remedy and item.found for item in advice)
    assert {item.id for item in advice} == {"H7", "H12", "H20", "H31", "H33", "H34"}


@pytest.mark.parametrize(
    ("option", "row"),
    [("name=userns", "H7"), ("name=rootless", "H7"), ("name=apparmor", "H20"), ("name=selinux", "H20")],
)
def test_the_engine_says_what_it_has(option: str, row: str) -> None:
    engine = replace(ENGINE, security_options=("name=seccomp,profile=builtin", option))
    on = {key.split()[0] for key, state in states(engine, SEEN).items() if state == "on"}
    assert row in on
    assert {"H7", "H20"} - {row} <= {key.split()[0] for key, state in states(engine, SEEN).items() if state == "off"}


@pytest.mark.parametrize(
    ("knob", "value", "state"),
    [
        ("kernel.unprivileged_bpf_disabled", "0", "off"),
        ("kernel.io_uring_disabled", "1", "off"),
        ("vm.unprivileged_userfaultfd", "1", "off"),
        ("kernel.kptr_restrict", "1", "on"),
        ("kernel.core_pattern", "|/usr/share/apport/apport %p", "off"),
        ("kernel.yama.ptrace_scope", "nonsense", "off"),
    ],
)
def test_each_knob_is_judged(knob: str, value: str, state: str) -> None:
    assert states(BEST, replace(SEEN, sysctls=GOOD | {knob: value}))[f"H33 {knob}"] == state


def test_what_is_not_seen_is_not_judged() -> None:
    elsewhere = states(ENGINE, None)
    assert {state for key, state in elsewhere.items() if key[:3] in ("H33", "H34")} == {"not visible"}
    blind = states(ENGINE, Sight({}, dict.fromkeys(MODULES, "unknown"), smt=None))
    assert {state for key, state in blind.items() if key[:3] in ("H33", "H34")} == {"not visible"}


def test_files_are_read_as_linux_writes_them(tmp_path: Path) -> None:
    lists = f"lib/modules/{os.uname().release}"
    files = {
        "proc/sys/kernel/kptr_restrict": "1\n",
        "proc/sys/kernel/core_pattern": "|/bin/handler %p\n",
        "proc/modules": "esp4 20480 0 - Live 0x0000000000000000\nesp4_offload 1 0 - Live 0x0\n",
        f"{lists}/modules.builtin": "kernel/crypto/algif_aead.ko\n",
        f"{lists}/modules.dep": "kernel/net/ipv6/esp6.ko.zst: \nkernel/net/rxrpc/rxrpc.ko: kernel/x.ko\n",
        "etc/modprobe.d/ours.conf": "# comment\ninstall rxrpc /bin/false\n",
        "sys/devices/system/cpu/smt/active": "1\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    seen = host.look(tmp_path)
    assert seen.sysctls == {"kernel.kptr_restrict": "1", "kernel.core_pattern": "|/bin/handler %p"}
    assert seen.modules == {"algif_aead": "built in", "esp4": "loaded", "esp6": "loadable", "rxrpc": "barred"}
    assert seen.smt is True
    (tmp_path / "etc/modprobe.d/ours.conf").write_text("blacklist esp6\ninstall rxrpc /sbin/modprobe -i rxrpc\n")
    (tmp_path / "proc/modules").write_text("")
    assert host.look(tmp_path).modules == {
        "algif_aead": "built in",
        "esp4": "absent",
        "esp6": "barred",
        "rxrpc": "loadable",
    }


def test_a_host_without_these_files_is_read_as_unknown(tmp_path: Path) -> None:
    assert host.look(tmp_path) == Sight({}, dict.fromkeys(MODULES, "unknown"), None)


class TestWhere:
    HERE = replace(ENGINE, kernel=os.uname().release, name=os.uname().nodename)
    BOOT = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()

    def test_a_box_of_this_boot_is_on_this_host(self) -> None:
        assert host.is_here(ENGINE, self.BOOT, own_kernel=False)
        assert not host.is_here(self.HERE, "6f4a", own_kernel=False)

    def test_one_with_a_kernel_of_its_own_or_silent_is_placed_by_its_engine(self) -> None:
        assert host.is_here(self.HERE, "6f4a", own_kernel=True)
        assert host.is_here(self.HERE, "", own_kernel=False)
        assert not host.is_here(replace(self.HERE, name="elsewhere"), self.BOOT, own_kernel=True)
        assert not host.is_here(replace(self.HERE, kernel="5.4"), "", own_kernel=False)
