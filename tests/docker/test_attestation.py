"""A box is refused when one control is off: with an engine that was asked for less, and before any code runs."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import EngineUnavailableError, HardeningError, ImageError, SandboxStartError
from orchestrator.interpreter import Sandbox
from orchestrator.policy import Policy, profiles
from orchestrator.sandbox import attestation, hardening
from orchestrator.sandbox.engine import Engine
from sandbox_image import wire
from tests.support.live import box
from tests.support.policies import UNDER_GVISOR, otherwise_under_gvisor
from tests.support.weakened import Config, Weaken, with_seccomp

pytestmark = [pytest.mark.docker, pytest.mark.anyio]


def host(**settings: Any) -> Weaken:
    return lambda config: config["HostConfig"].update(settings)


def top(**settings: Any) -> Weaken:
    return lambda config: config.update(settings)


def tmpfs(where: str, old: str, new: str) -> Weaken:
    def weaken(config: Config) -> None:
        mounts = config["HostConfig"]["Tmpfs"]
        assert old in mounts[where]
        mounts[where] = mounts[where].replace(old, new)

    return weaken


def ulimit(name: str, value: int) -> Weaken:
    def weaken(config: Config) -> None:
        (found,) = (limit for limit in config["HostConfig"]["Ulimits"] if limit["Name"] == name)
        found.update(Soft=value, Hard=value)

    return weaken


def append(setting: str, value: str) -> Weaken:
    def weaken(config: Config) -> None:
        config["HostConfig"][setting] = [*config["HostConfig"][setting], value]

    return weaken


def without(setting: str, value: str) -> Weaken:
    def weaken(config: Config) -> None:
        config["HostConfig"][setting].remove(value)

    return weaken


def together(*changes: Weaken) -> Weaken:
    def weaken(config: Config) -> None:
        for change in changes:
            change(config)

    return weaken


def of_another_group(config: Config) -> None:
    config["User"] = config["User"].partition(":")[0] + ":1234"


# What an engine can be asked for instead, and the controls that must say so.
WEAKENED: dict[str, tuple[Weaken, set[str]]] = {
    "a capability": (host(CapAdd=["CHOWN"]), {"H3"}),
    "all capabilities": (host(CapDrop=[]), {"H3"}),
    # Without privileges no filter can be installed any more, so there is none here.
    "new privileges": (host(SecurityOpt=["seccomp=unconfined"]), {"H2", "H4", "H19"}),
    "another group": (of_another_group, {"H6"}),
    "a writable root": (host(ReadonlyRootfs=False), {"H8", "H10"}),
    "executable scratch": (tmpfs("/tmp", "noexec", "exec"), {"H9"}),  # noqa: S108 - the box's
    "larger scratch": (tmpfs("/tmp", "size=8m", "size=64m"), {"H9"}),  # noqa: S108
    "more inodes": (tmpfs("/tmp", "nr_inodes=256", "nr_inodes=0"), {"H9"}),  # noqa: S108
    "a larger shm": (tmpfs("/dev/shm", "size=16m", "size=64m"), {"H9"}),  # noqa: S108
    "the engine's own shm": (lambda config: config["HostConfig"]["Tmpfs"].pop("/dev/shm"), {"H9"}),  # noqa: S108
    "a folder of the host": (host(Binds=["/etc:/host:ro"]), {"H10"}),
    "shareable IPC": (host(IpcMode="shareable"), {"H11"}),
    "the host's cgroups": (host(CgroupnsMode="host"), {"H12", "H27"}),
    "more memory": (host(Memory=1 << 30, MemorySwap=1 << 30), {"H13a", "H13b"}),
    "swap": (host(MemorySwap=1 << 30), {"H13b"}),
    "no memory killer": (host(OomKillDisable=True), {"H14"}),
    "a later victim": (host(OomScoreAdj=0), {"H15"}),
    "more processes": (host(PidsLimit=200), {"H16"}),
    "more processor": (host(CpuQuota=200_000), {"H17"}),
    "another period": (host(CpuPeriod=50_000), {"H17"}),
    "more descriptors": (ulimit("nofile", 4096), {"H18a"}),
    "core dumps": (ulimit("core", 1 << 20), {"H18b"}),
    "core dumps to a handler alone": (ulimit("core", 0), {"H18b"}),
    "no filter": (with_seccomp("unconfined"), {"H2", "H19"}),
    "the engine's filter": (with_seccomp(None), {"H2", "H19"}),
    "a filter that lets all pass": (with_seccomp('{"defaultAction":"SCMP_ACT_ALLOW"}'), {"H2", "H19"}),
    "a log": (host(LogConfig={"Type": "json-file", "Config": {}}), {"H23"}),
    "no masks": (host(MaskedPaths=[], ReadonlyPaths=[]), {"H25"}),
    "another name": (top(Hostname="build-server"), {"H26"}),
    "an environment": (top(Env=["PATH", "ANTHROPIC_API_KEY=canary"]), {"H26"}),
    # The engine switches labels off for it, too.
    "the host's processes": (host(PidMode="host"), {"H20", "H22", "H27"}),
    "the host's name space": (together(host(UTSMode="host"), top(Hostname="")), {"H26", "H27"}),
    "security modules off": (append("SecurityOpt", "apparmor=unconfined"), {"H20"}),
    "labels off": (append("SecurityOpt", "label=disable"), {"H20"}),
    "a host-like command line": (without("MaskedPaths", "/proc/cmdline"), {"H25"}),
    "writable sysctls": (without("ReadonlyPaths", "/proc/sys"), {"H25"}),
    "a device": (
        host(Devices=[{"PathOnHost": "/dev/null", "PathInContainer": "/dev/x", "CgroupPermissions": "rwm"}]),
        {"H27"},
    ),
    "another folder": (top(WorkingDir="/tmp"), {"H29"}),  # noqa: S108
}
OTHERWISE_UNDER_GVISOR = {"the engine's filter": "no program starts with it"}
# Whatever the engine was asked for, there a box has processes and namespaces of its own: its record alone tells.
UNSEEN_UNDER_GVISOR = {"the host's cgroups": {"H27"}, "the host's processes": {"H22"}}
# Some releases mount it as a folder of the host.
PERHAPS_UNDER_GVISOR = {"shareable IPC": {"H9", "H10"}}


@pytest.fixture
def weakened(monkeypatch: pytest.MonkeyPatch) -> Any:
    def apply(weaken: Weaken) -> None:
        made = hardening.container_config

        def config(*arguments: Any) -> Config:
            found = made(*arguments)
            weaken(found)
            return found

        monkeypatch.setattr(hardening, "container_config", config)

    return apply


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[otherwise_under_gvisor(OTHERWISE_UNDER_GVISOR[name])])
        if name in OTHERWISE_UNDER_GVISOR
        else name
        for name in WEAKENED
    ],
)
async def test_a_box_that_got_more_than_it_should_is_refused(engine: Engine, weakened: Any, name: str) -> None:
    weaken, controls = WEAKENED[name]
    weakened(weaken)
    with pytest.raises(HardeningError) as caught:
        async with box(engine):
            pytest.fail("code could have run")
    named = {line.partition(" ")[0] for line in caught.value.controls}
    if UNDER_GVISOR:
        controls = controls - UNSEEN_UNDER_GVISOR.get(name, set())
        named -= PERHAPS_UNDER_GVISOR.get(name, set())
    assert named == controls


async def test_a_network_is_noticed_from_both_sides(engine: Engine, weakened: Any) -> None:
    weakened(together(host(NetworkMode="host"), top(NetworkDisabled=False)))
    with pytest.raises(HardeningError) as caught:
        async with box(engine):
            pytest.fail("code could have run")
    assert "H1 no network: an empty namespace with loopback at most (seen from engine)" in caught.value.controls
    if not UNDER_GVISOR:  # there is none in the box, whatever the engine was asked for
        assert "H1 no network: an empty namespace with loopback at most (seen from inside)" in caught.value.controls


async def test_an_image_that_is_not_the_one_asked_for_is_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = attestation.verify

    def other(record: Any, facts: Any, wanted: hardening.Wanted) -> attestation.Report:
        return verify({**record, "Image": "sha256:" + "0" * 64}, facts, wanted)

    monkeypatch.setattr(attestation, "verify", other)
    with pytest.raises(HardeningError, match="H28"):
        async with box(engine):
            pytest.fail("code could have run")


async def test_an_image_of_another_protocol_is_refused(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "PROTOCOL_VERSION", 999)
    with pytest.raises((ImageError, SandboxStartError), match="image build"):
        async with box(engine):
            pytest.fail("code could have run")


async def test_a_runtime_the_engine_does_not_know_is_no_box(engine: Engine) -> None:
    with pytest.raises(EngineUnavailableError, match="runtime"):
        async with box(engine, "sandbox.runtime=no-such-runtime"):
            pytest.fail("code could have run")


async def test_every_profile_for_the_engines_own_runtime_gives_a_box_in_which_every_control_is_held(
    engine: Engine,
) -> None:
    for policy in map(Policy.load, profiles()):
        if not policy.sandbox.runtime:
            async with Sandbox.open(policy, engine=engine) as opened:
                assert all("held" in found for found in opened.info.controls.values()), policy.name
