"""From a policy to a locked container and back: each control, when it is off, is noticed and named."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import bundle
from orchestrator.policy import Policy, profiles
from orchestrator.sandbox import hardening
from orchestrator.sandbox.attestation import verify
from orchestrator.sandbox.controls import CONTROLS
from tests.escape import profile
from tests.support.boxes import HOST, IMAGE, SECCOMP, config, facts, record, wanted

Mutate = Callable[[dict[str, Any]], object]


# What the interpreter of a box is told by a filter that takes all there is to be taken.
REFUSED = dict.fromkeys(("seccomp", "execve", "clone", "kill", "fcntl"), "EPERM")


def at(*path: str | int, to: Any) -> Mutate:
    """Return what sets one value in nested data."""

    def change(data: dict[str, Any]) -> None:
        inner: Any = data
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = to

    return change


def mount(where: str, **fields: str) -> Mutate:
    """Return what changes kind, options or superblock of one mount; ``gone`` removes it."""

    def change(data: dict[str, Any]) -> None:
        if "gone" in fields:
            data["mounts"] = [entry for entry in data["mounts"] if entry[0] != where]
        for entry in data["mounts"]:
            if entry[0] == where:
                for place, name in enumerate(("kind", "options", "superblock"), start=1):
                    entry[place] = fields.get(name, entry[place])

    return change


def host(key: str, to: Any) -> Mutate:
    return at("HostConfig", key, to=to)


def ulimit(name: str, **limit: int) -> Mutate:
    def change(data: dict[str, Any]) -> None:
        (found,) = (entry for entry in data["HostConfig"]["Ulimits"] if entry["Name"] == name)
        found.update(limit)

    return change


# What an engine that ignored a flag, or was asked for less, would say; and what the box would see.
WEAKENED: dict[tuple[str, str], list[Mutate]] = {
    ("H1", "engine"): [host("NetworkMode", "bridge"), host("NetworkMode", "host")],
    ("H1", "inside"): [at("interfaces", to=["eth0", "lo"])],
    ("H2", "inside"): [at("inet_socket", to="allowed"), at("inet_socket", to="EAFNOSUPPORT")],
    ("H3", "engine"): [host("CapDrop", []), host("CapAdd", ["NET_RAW"])],
    ("H3", "inside"): [
        at("status", field, to="00000000a80425fb") for field in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    ]
    + [at("status", "CapBnd", to="")],
    ("H4", "engine"): [host("SecurityOpt", [f"seccomp={SECCOMP}"])],
    ("H4", "inside"): [at("status", "NoNewPrivs", to="0")],
    ("H6", "engine"): [at("Config", "User", to="")],
    ("H6", "inside"): [
        at("status", "Uid", to="64000\t0\t64000\t64000"),
        at("status", "Gid", to="0\t0\t0\t0"),
        at("status", "Groups", to="0 64000"),
        at("uid_map", to="64000 0 1\n"),
        at("gid_map", to="0 1000 64000\n64000 0 1000\n"),
        at("uid_map", to="0 100000 1000\n"),
        at("uid_map", to="garbage"),
    ],
    ("H7", "engine"): [host("UsernsMode", "host")],
    ("H8", "engine"): [host("ReadonlyRootfs", to=False)],
    ("H8", "inside"): [mount("/", options="rw,relatime"), mount("/", gone="")],
    ("H9", "engine"): [host("Tmpfs", {"/tmp": ""}), host("Tmpfs", None)],  # noqa: S108 - the box's
    ("H9", "inside"): [
        mount("/tmp", options="rw,nosuid,nodev"),  # noqa: S108
        mount("/tmp", superblock="rw,nr_inodes=4096"),  # noqa: S108
        mount("/tmp", superblock="rw,size=65536k"),  # noqa: S108
        mount("/tmp", kind="ext4"),  # noqa: S108
        mount("/run/box", options="rw,nosuid,noexec"),
        mount("/run/box", gone=""),
        mount("/dev/shm", superblock="rw"),  # noqa: S108
    ],
    ("H10", "engine"): [
        host("Binds", ["/:/host"]),
        host("Mounts", [{"Type": "bind"}]),
        host("VolumesFrom", ["other"]),
        at("Mounts", to=[{}]),
    ],
    ("H10", "inside"): [
        lambda data: data["mounts"].append(["/host", "ext4", "rw", "rw"]),
        mount("/etc/hostname", options="rw,relatime"),
    ],
    ("H11", "engine"): [host("IpcMode", "host"), host("IpcMode", "shareable")],
    ("H12", "engine"): [host("CgroupnsMode", "host"), host("CgroupParent", "/other")],
    ("H12", "inside"): [at("cgroup_path", to="2:memory:/docker/abc\n"), at("cgroup_path", to="")],
    ("H13a", "engine"): [host("Memory", 0)],
    ("H13a", "inside"): [at("cgroup", "memory", to="9223372036854771712\n"), at("cgroup", "memory", to="max\n")],
    ("H13b", "engine"): [host("MemorySwap", -1), host("MemorySwap", 2**33)],
    ("H13b", "inside"): [at("cgroup", "swap", to="max\n"), at("cgroup", "swap", to="")],
    ("H14", "engine"): [host("OomKillDisable", to=True)],
    ("H15", "engine"): [host("OomScoreAdj", 0)],
    ("H16", "engine"): [host("PidsLimit", 0), host("PidsLimit", None)],
    ("H16", "inside"): [at("cgroup", "pids", to="max\n")],
    ("H17", "engine"): [host("CpuQuota", 0)],
    ("H17", "inside"): [at("cgroup", "cpu_quota", to="-1\n"), at("cgroup", "cpu_period", to="1000\n")],
    ("H18a", "engine"): [ulimit("nofile", Hard=1048576), host("Ulimits", None)],
    ("H18a", "inside"): [at("limits", "Max open files", to=["1024", "1048576"])],
    ("H18b", "engine"): [ulimit("core", Soft=-1)],
    ("H18b", "inside"): [at("limits", "Max core file size", to=["0", "unlimited"])],
    ("H19", "engine"): [
        host("SecurityOpt", ["no-new-privileges"]),
        host("SecurityOpt", ["no-new-privileges", "seccomp=unconfined"]),
        host("SecurityOpt", ["no-new-privileges", 'seccomp={"defaultAction":"SCMP_ACT_ALLOW"}']),
    ],
    ("H19", "inside"): [at("status", "Seccomp", to="0")],
    ("H19b", "engine"): [at("Config", "Cmd", to=["{}"]), at("Config", "Cmd", to=[])],
    ("H23", "engine"): [host("LogConfig", {"Type": "json-file", "Config": {}})],
    ("H24", "engine"): [host("RestartPolicy", {"Name": "always", "MaximumRetryCount": 0})],
    ("H20", "engine"): [
        at("AppArmorProfile", to="unconfined"),
        lambda data: data.pop("AppArmorProfile"),
        host("SecurityOpt", ["no-new-privileges", f"seccomp={SECCOMP}", "label=disable"]),
        host("SecurityOpt", ["no-new-privileges", f"seccomp={SECCOMP}", "apparmor=unconfined"]),
        host("SecurityOpt", ["no-new-privileges", f"seccomp={SECCOMP}", "systempaths=unconfined"]),
    ],
    ("H22", "inside"): [at("pid", to=7)],
    ("H25", "engine"): [host("MaskedPaths", []), host("ReadonlyPaths", []), host("MaskedPaths", None)],
    ("H25", "inside"): [
        mount("/proc/cmdline", gone=""),
        mount("/sys/devices", kind="sysfs"),
        mount("/proc/sys", options="rw,relatime"),
        mount("/proc/sys", gone=""),
    ],
    ("H26", "engine"): [at("Config", "Hostname", to="laptop-of-anna")],
    ("H26", "inside"): [
        at("hostname", to="laptop-of-anna"),
        at("environment", to=["HOME", "ANTHROPIC_API_KEY"]),
    ],
    ("H27", "engine"): [
        host("Devices", [{"PathOnHost": "/dev/kvm"}]),
        host("DeviceRequests", [{"Driver": "nvidia"}]),
        host("Privileged", to=True),
        host("PortBindings", {"80/tcp": [{}]}),
        host("PublishAllPorts", to=True),
        host("PidMode", "host"),
        host("UTSMode", "host"),
    ],
    ("H27", "inside"): [
        at("namespaces", "pid", to="pid:[4026531836]"),
        at("namespaces", "net", to=HOST.namespaces["net"]),
        at("namespaces", "uts", to=""),
        at("namespaces", to={}),
    ],
    ("H28", "engine"): [at("Image", to="sha256:" + "cd" * 32)],
    ("H29", "engine"): [at("Config", "WorkingDir", to="/proc/self/fd/7"), at("Config", "Entrypoint", to=["/bin/sh"])],
    ("P1", "inside"): [at("stream_in_reach", to=True), at("stream_in_reach", to=None)],
    ("P20", "inside"): [at("descriptors", to=["0 pipe:[1]", "8 /sys/fs/cgroup"])],
}


DANGEROUS = re.findall(
    r"\w+",
    """
    ptrace process_vm_readv process_vm_writev pidfd_open pidfd_getfd pidfd_send_signal bpf perf_event_open userfaultfd
    io_uring_setup io_uring_enter io_uring_register keyctl add_key request_key mount umount2 fsopen fsconfig fsmount
    open_tree move_mount pivot_root chroot unshare setns open_by_handle_at name_to_handle_at init_module finit_module
    delete_module kexec_load reboot swapon acct syslog socketcall splice tee vmsplice sendfile copy_file_range
    memfd_create memfd_secret execveat mknod mknodat sync syncfs shmget msgget semget mq_open setuid setgid setgroups
    setresuid capset iopl ioperm modify_ldt kcmp fanotify_init quotactl
    """,
)


class TestVerify:
    @pytest.mark.parametrize("policy", [Policy.load(name) for name in profiles()], ids=profiles())
    def test_a_box_as_wanted_deviates_in_nothing(self, policy: Policy) -> None:
        report = verify(record(policy), facts(policy), wanted(policy))
        assert report.deviations == []
        assert set(report.controls) == {control.id for control in CONTROLS}
        assert all("held" in found for found in report.controls.values())

    def test_every_way_a_control_is_read_back_is_tried_here(self) -> None:
        views = {(control.id, "engine") for control in CONTROLS if control.engine is not None}
        views |= {(control.id, "inside") for control in CONTROLS if control.inside is not None}
        views -= {("H31", "inside")}  # of policies that ask for gVisor alone: test_gvisor.py
        views -= {("H7", "inside")}  # of policies that ask for a user namespace alone: below
        views -= {("H19b", "inside")}  # of policies that take something from the interpreter alone: below
        assert set(WEAKENED) == views
        assert len({control.id for control in CONTROLS}) == len(CONTROLS)

    @pytest.mark.parametrize(
        ("control", "view", "mutate"),
        [(control, view, mutate) for (control, view), changes in WEAKENED.items() for mutate in changes],
        ids=[
            f"{control} {view} {number}"
            for (control, view), changes in WEAKENED.items()
            for number in range(len(changes))
        ],
    )
    def test_a_control_that_is_off_is_noticed_and_named(self, control: str, view: str, mutate: Mutate) -> None:
        engine, inside = record(), facts()
        mutate(engine if view == "engine" else inside)
        report = verify(engine, inside, wanted())
        named = [line.partition(" ")[0] for line in report.deviations]
        assert control in named
        # A flag may show in two controls (no seccomp filter, no refused socket), but not in unrelated ones.
        assert len(set(named)) <= 2
        assert any(line.startswith(f"{control} ") and view in line for line in report.deviations)
        assert "NOT IN FORCE" in report.controls[control]

    def test_a_user_namespace_is_demanded_where_the_policy_says_so(self) -> None:
        policy = Policy().override(["sandbox.user_namespace=true"])
        inside = facts(policy)
        report = verify(record(policy), inside, wanted(policy))
        assert [line.partition(" ")[0] for line in report.deviations] == ["H7"]
        inside |= {"uid_map": "0 100000 65536\n", "gid_map": "0 100000 65536\n"}
        assert verify(record(policy), inside, wanted(policy)).deviations == []
        inside["uid_map"] = ""
        assert "H7" in verify(record(policy), inside, wanted(policy)).deviations[-1]

    @pytest.mark.parametrize(
        ("setting", "change"),
        [
            ("sandbox.allow_subprocess=false", {"refusals": {"seccomp": "EPERM", "clone": "EPERM"}}),
            ("sandbox.allow_subprocess=false", {"refusals": {**REFUSED, "execve": "EFAULT"}}),
            ("sandbox.allow_subprocess=false", {"refusals": {**REFUSED, "clone": "EINVAL"}}),
            ("sandbox.allow_subprocess=false", {"refusals": {**REFUSED, "seccomp": "EINVAL"}}),
            ("sandbox.allow_subprocess=false", {"status": {"Seccomp_filters": "1"}}),
            ("sandbox.allow_subprocess=false", {"refusals": None}),
            ("sandbox.freeze_between_cells=true", {"refusals": {**REFUSED, "kill": "ESRCH"}}),
            ("sandbox.freeze_between_cells=true", {"refusals": {**REFUSED, "fcntl": "EBADF"}}),
        ],
        ids=str,
    )
    def test_a_second_filter_is_demanded_where_the_policy_says_so(self, setting: str, change: dict[str, Any]) -> None:
        policy = Policy().override([setting])
        inside = facts(policy)
        assert verify(record(policy), inside, wanted(policy)).deviations == []
        assert "H19b" in verify(record(), facts(), wanted(policy)).deviations[0]  # a box that was told of no such thing
        inside["interpreter"].update(change)
        report = verify(record(policy), inside, wanted(policy))
        assert [line.partition(" ")[0] for line in report.deviations] == ["H19b"]

    def test_refusals_alone_have_to_do_where_no_filters_are_counted(self) -> None:
        policy = Policy.load("strict")
        inside = facts(policy)
        del inside["status"]["Seccomp_filters"], inside["interpreter"]["status"]["Seccomp_filters"]
        assert verify(record(policy), inside, wanted(policy)).deviations == []

    def test_numbers_of_namespaces_are_compared_on_one_kernel_alone(self) -> None:
        inside = facts()
        inside["namespaces"]["net"] = HOST.namespaces["net"]
        inside["boot_id"] = "another"
        assert verify(record(), inside, wanted()).deviations == []

    @pytest.mark.parametrize("empty", ["engine", "inside"])
    def test_what_cannot_be_read_is_not_in_force(self, empty: str) -> None:
        report = verify({} if empty == "engine" else record(), {} if empty == "inside" else facts(), wanted())
        missing = {control.id for control in CONTROLS if getattr(control, empty) is not None}
        missing -= {"H7", "H19b"} if empty == "inside" else set()  # which the policy does not want
        assert {line.partition(" ")[0] for line in report.deviations} == missing

    @settings(max_examples=200, deadline=None)
    @given(data=st.data())
    def test_facts_of_any_shape_are_judged_and_never_raise(self, data: st.DataObject) -> None:
        plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.text(max_size=8)
        anything = st.recursive(
            plain,
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
            max_leaves=8,
        )
        inside = facts()
        for key in data.draw(st.sets(st.sampled_from(sorted(inside)), max_size=5)):
            inside[key] = data.draw(anything)
        verify(record(), inside, wanted())

    def test_under_the_second_version_of_cgroups_too(self) -> None:
        inside = facts()
        inside["cgroup"] |= {"swap": "0\n", "cpu_quota": "100000 100000\n", "cpu_period": "100000 100000\n"}
        inside["cgroup_path"] = "0::/\n"
        assert verify(record(), inside, wanted()).deviations == []


class TestConfig:
    def test_numbers_are_the_policys(self) -> None:
        policy = Policy.load("strict")
        made = config(policy)["HostConfig"]
        assert made["Memory"] == made["MemorySwap"] == policy.limits.memory_mb << 20
        assert made["PidsLimit"] == policy.limits.pids
        assert made["CpuQuota"] == policy.limits.cpus * made["CpuPeriod"]
        assert f"size={policy.limits.tmp_mb}m" in made["Tmpfs"]["/tmp"]  # noqa: S108 - the box's

    def test_no_runtime_is_named_unless_the_policy_does(self) -> None:
        assert "Runtime" not in config()["HostConfig"]
        assert config(Policy().override(["sandbox.runtime=runsc"]))["HostConfig"]["Runtime"] == "runsc"

    def test_no_secret_and_no_path_of_the_host_is_in_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ANTHROPIC_API_KEY", "canary")
        text = json.dumps(config())
        assert "canary" not in text
        assert str(bundle.path(".")) not in text
        assert config()["Env"] == ["PATH"]
        assert config()["Image"] == IMAGE

    @pytest.mark.parametrize("output_kb", [4, 256, 1000, 1 << 16])
    def test_a_frame_holds_the_most_a_cell_can_leave_at_its_end(self, output_kb: int) -> None:
        policy = Policy().override([f"limits.output_kb={output_kb}", "limits.frame_kb=64"])
        both_tails = 2 * output_kb * 1024 * 6
        assert hardening.frame_bytes(policy) >= both_tails + 2000
        assert hardening.supervisor_settings(policy)["frame"] == hardening.frame_bytes(policy)

    def test_a_frame_holds_a_piece_of_context(self) -> None:
        policy = Policy().override(["limits.output_kb=4", "limits.frame_kb=64"])
        assert hardening.frame_bytes(policy) > 1 << 20


class TestProfile:
    PROFILE = json.loads(bundle.path("policies/seccomp.json").read_text("utf-8"))

    def rules(self, name: str) -> list[dict[str, Any]]:
        return [rule for rule in self.PROFILE["syscalls"] if name in rule["names"]]

    def test_what_is_not_named_is_refused(self) -> None:
        assert self.PROFILE["defaultAction"] == "SCMP_ACT_ERRNO"
        assert self.PROFILE["defaultErrnoRet"] == 1
        assert all(not entry["subArchitectures"] for entry in self.PROFILE["archMap"])

    @pytest.mark.parametrize("name", DANGEROUS)
    def test_a_dangerous_call_is_not_named(self, name: str) -> None:
        assert self.rules(name) == []

    @pytest.mark.parametrize("name", ["socket", "socketpair"])
    def test_only_unix_sockets_can_be_made(self, name: str) -> None:
        (rule,) = self.rules(name)
        assert rule["args"] == [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]

    def test_clone_makes_no_namespace_and_clone3_is_not_there(self) -> None:
        (clone,) = self.rules("clone")
        namespaces = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
        others = 0x1000 | 0x2000 | 0x8000  # CLONE_PIDFD, CLONE_PTRACE, CLONE_PARENT
        assert clone["args"] == [{"index": 0, "value": namespaces | others, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]
        (clone3,) = self.rules("clone3")
        assert (clone3["action"], clone3["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)

    @pytest.mark.parametrize(("name", "indexes"), [("sched_setaffinity", [0]), ("setpriority", [0, 1])])
    def test_limits_and_priorities_of_other_processes_are_out_of_reach(self, name: str, indexes: list[int]) -> None:
        (rule,) = self.rules(name)
        assert rule["args"] == [{"index": index, "value": 0, "op": "SCMP_CMP_EQ"} for index in indexes]

    def test_only_its_own_limits_are_a_processs_to_set_and_that_of_cores_is_not(self) -> None:
        rules = self.rules("prlimit64")
        assert all({"index": 0, "value": 0, "op": "SCMP_CMP_EQ"} in rule["args"] for rule in rules)
        assert self.rules("setrlimit") == []
        allowed = {limit for limit in range(64) if profile.verdict("prlimit64", [0, limit, 4096]) == "allowed"}
        assert allowed == set(range(16)) - {resource.RLIMIT_CORE}
        assert profile.verdict("prlimit64", [0, resource.RLIMIT_CORE, 0]) == "allowed"  # to read

    def test_every_rule_names_a_call_once_and_says_why(self) -> None:
        plain = [name for rule in self.PROFILE["syscalls"] if not rule.get("args") for name in rule["names"]]
        assert len(plain) == len(set(plain))
        assert all(re.search(r"\w{3}", rule["comment"]) for rule in self.PROFILE["syscalls"])
