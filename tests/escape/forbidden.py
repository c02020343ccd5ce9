"""Uses of system calls that a box must refuse, each made so that it does something where nothing refuses it.

An attempt is Python for :func:`tests.escape.probe.attempt`. Its twin is the box it has to get further in: ``filter``
lacks the filter alone; in ``filter and capabilities`` the code is also root with every capability, because Linux itself
refuses the call to anyone less. Arguments are chosen so that even there nothing comes of it but another error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Twin = Literal["filter", "filter and capabilities"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One use of a call.

    Attributes:
        name: the call, and what for.
        code: the attempt.
        twin: what has to be taken away for it to get further.
        refusal: what a box says to it.
    """

    name: str
    code: str
    twin: Twin = "filter"
    refusal: str = "EPERM"


def _filter(**attempts: str) -> list[Attempt]:
    return [Attempt(name.replace("__", " "), code) for name, code in attempts.items()]


def _capable(**attempts: str) -> list[Attempt]:
    return [Attempt(name.replace("__", " "), code, "filter and capabilities") for name, code in attempts.items()]


_NEW = {
    "NEWTIME": 0x80,
    "NEWNS": 0x20000,
    "NEWCGROUP": 0x2000000,
    "NEWUTS": 0x4000000,
    "NEWIPC": 0x8000000,
    "NEWUSER": 0x10000000,
    "NEWPID": 0x20000000,
    "NEWNET": 0x40000000,
}
_LEAVE = "\nif child == 0: os._exit(0)\nos.waitpid(child, 0)"

NAMESPACES = [
    *(
        Attempt(f"unshare {name}", f"invoke('unshare', {flag})", "filter and capabilities")
        for name, flag in _NEW.items()
    ),
    *(
        Attempt(f"clone {name}", f"child = invoke('clone', {flag} | 17){_LEAVE}", "filter and capabilities")
        for name, flag in _NEW.items()
        if name != "NEWTIME"  # not one of clone's: its bit is part of the signal's number there
    ),
    *(
        Attempt(
            f"clone3 {name}",
            f"child = invoke('clone3', struct.pack('11Q', {flag}, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0), 88){_LEAVE}",
            "filter and capabilities",
            "ENOSYS",
        )
        for name, flag in _NEW.items()
    ),
    *_filter(
        clone__CLONE_PIDFD=f"child = invoke('clone', 0x1000 | 17, 0, bytes(8)){_LEAVE}",
        clone__CLONE_PTRACE=f"child = invoke('clone', 0x2000 | 17){_LEAVE}",
        clone__CLONE_PARENT="if invoke('clone', 0x8000 | 17) == 0: os._exit(0)",
    ),
    *_capable(
        setns="invoke('setns', os.open('/proc/self/ns/mnt', 0), 0)",
    ),
]
MOUNTS = _capable(
    mount="invoke('mount', b'none\\0', b'/no/such/place\\0', b'tmpfs\\0', 0, 0)",
    umount2="invoke('umount2', b'/no/such/place\\0', 0)",
    pivot_root="invoke('pivot_root', b'/no/such/place\\0', b'/no/such/place\\0')",
    chroot="invoke('chroot', b'/\\0')",
    fsopen="invoke('fsopen', b'tmpfs\\0', 0)",
    fsmount="invoke('fsmount', -1, 0, 0)",
    fspick="invoke('fspick', -100, b'/proc\\0', 0)",
    move_mount="invoke('move_mount', -1, b'\\0', -1, b'\\0', 0)",
    quotactl="invoke('quotactl', 0x800002 << 8, b'/no/such/device\\0', 0, bytes(256))",
    swapon="invoke('swapon', b'/no/such/file\\0', 0)",
    swapoff="invoke('swapoff', b'/no/such/file\\0')",
    open_by_handle_at="invoke('open_by_handle_at', os.open('/', 0), struct.pack('Ii8s', 8, 1, b'none'), 0)",
)
MOUNTS += [
    Attempt(
        "mount_setattr",
        "invoke('mount_setattr', -1, b'/\\0', 0, bytes(32), 32)",
        "filter and capabilities",
        "EPERM|ENOSYS",
    ),
    *_filter(
        fsconfig="invoke('fsconfig', -1, 0, 0, 0, 0)",
        open_tree="invoke('open_tree', -100, b'/\\0', 0)",
        name_to_handle_at=(
            "invoke('name_to_handle_at', -100, b'/proc/self\\0', bytearray(struct.pack('Ii', 0, 0)), bytearray(8), 0)"
        ),
        inotify_init1="invoke('inotify_init1', 0)",
        sync="invoke('sync')",
        syncfs="invoke('syncfs', os.open('/tmp', 0))",
        mknod="os.mkfifo('/tmp/fifo'); os.unlink('/tmp/fifo')",
        setxattr="invoke('setxattr', b'/tmp\\0', b'user.x\\0', b'x', 1, 0)",
    ),
    *(
        Attempt(name, f"invoke('{name}', {arguments})", refusal="EPERM|ENOSYS")
        for name, arguments in {
            "quotactl_fd": "-1, 0, 0, 0",
            "statmount": "bytes(24), bytearray(512), 512, 0",
            "listmount": "struct.pack('IIQQ', 24, 0, (1 << 64) - 1, 0), bytearray(64), 8, 0",
            "open_tree_attr": "-1, b'\\0', 0, 0, 0",
            "file_getattr": "-100, b'/tmp\\0', bytearray(64), 24, 0",
            "cachestat": "-1, bytes(16), bytearray(40), 0",
        }.items()
    ),
]
_PIPE = "one = os.pipe(); two = os.pipe(); os.write(one[1], b'x')\n"
_FILES = "source = os.open('/etc/passwd', 0); target = os.open('/tmp', os.O_TMPFILE | os.O_RDWR)\n"
PAGES = [
    *_filter(
        splice=_FILES + "os.splice(source, os.pipe()[1], 10)",
        vmsplice=_PIPE + "page = bytes(4096); invoke('vmsplice', two[1], struct.pack('QQ', id(page), 16), 1, 0)",
        tee=_PIPE + "invoke('tee', one[0], two[1], 1, 0)",
        sendfile=_FILES + "os.sendfile(target, source, 0, 10)",
        copy_file_range=_FILES + "os.copy_file_range(source, target, 10)",
        memfd_create="os.memfd_create('x')",
        execveat="invoke('execveat', -1, b'\\0', 0, 0, 0x1000)",
        program__without__a__file=(
            "file = os.memfd_create('x', 0); os.write(file, open('/bin/true', 'rb').read())\n"
            "os.execve(f'/proc/self/fd/{file}', ['true'], {})"
        ),
        userfaultfd="invoke('userfaultfd', 1)",
        mincore="import mmap; page = mmap.mmap(-1, 4096)\n"
        "invoke('mincore', ctypes.addressof(ctypes.c_char.from_buffer(page)), 4096, bytearray(1))",
        fadvise64="invoke('fadvise64', os.open('/etc/passwd', 0), 0, 0, 4)",
        readahead="invoke('readahead', os.open('/etc/passwd', 0), 0, 4096)",
        madvise__MADV_PAGEOUT="import mmap; mmap.mmap(-1, 4096).madvise(21)",
        remap_file_pages="invoke('remap_file_pages', 0, 4096, 0, 0, 0)",
        mlock="import mmap; page = mmap.mmap(-1, 4096)\n"
        "invoke('mlock', ctypes.addressof(ctypes.c_char.from_buffer(page)), 4096)",
        mlock2="invoke('mlock2', 0, 0, 0)",
        mlockall="invoke('mlockall', 2)",
        move_pages="invoke('move_pages', 0, 0, 0, 0, 0, 0)",
        mbind="import mmap; page = mmap.mmap(-1, 4096)\n"
        "invoke('mbind', ctypes.addressof(ctypes.c_char.from_buffer(page)), 4096, 0, 0, 0, 0)",
        set_mempolicy="invoke('set_mempolicy', 0, 0, 0)",
        get_mempolicy="invoke('get_mempolicy', bytearray(4), 0, 0, 0, 0)",
        migrate_pages="invoke('migrate_pages', 0, 0, bytes(8), bytes(8))",
        pkey_alloc="invoke('pkey_alloc', 1, 0)",
        modify_ldt="invoke('modify_ldt', 0, bytearray(64), 64)",
        membarrier="invoke('membarrier', 0, 0, 0)",
    ),
    Attempt("memfd_secret", "invoke('memfd_secret', 0)", refusal="EPERM|ENOSYS"),
    Attempt("process_madvise", "invoke('process_madvise', -1, bytes(16), 1, 4, 0)", refusal="EPERM|ENOSYS"),
    Attempt("mseal", "invoke('mseal', 0, 0, 0)", refusal="EPERM|ENOSYS"),
    Attempt("map_shadow_stack", "invoke('map_shadow_stack', 0, 4096, 1)", refusal="EPERM|ENOSYS"),
    Attempt("preadv2", "invoke('preadv2', os.open('/etc/passwd', 0), bytes(16), 0, 0, 0, 0)", refusal="ENOSYS"),
    Attempt("pwritev2", "invoke('pwritev2', os.pipe()[1], bytes(16), 0, -1, -1, 0)", refusal="ENOSYS"),
]
OTHERS = [
    *_filter(
        ptrace__TRACEME="invoke('ptrace', 0, 0, 0, 0)",
        ptrace__ATTACH=(
            "child = os.fork()\nif child == 0: signal.pause()\n"
            "try: invoke('ptrace', 16, child, 0, 0)\nfinally: os.kill(child, 9)"
        ),
        process_vm_readv=(
            "there = ctypes.create_string_buffer(8); here = ctypes.create_string_buffer(8)\n"
            "sides = [struct.pack('QQ', ctypes.addressof(side), 8) for side in (here, there)]\n"
            "invoke('process_vm_readv', os.getpid(), sides[0], 1, sides[1], 1, 0)"
        ),
        process_vm_writev=(
            "there = ctypes.create_string_buffer(8); here = ctypes.create_string_buffer(8)\n"
            "sides = [struct.pack('QQ', ctypes.addressof(side), 8) for side in (here, there)]\n"
            "invoke('process_vm_writev', os.getpid(), sides[0], 1, sides[1], 1, 0)"
        ),
        pidfd_open="os.pidfd_open(os.getpid())",
        pidfd_getfd="invoke('pidfd_getfd', -1, 0, 0)",
        pidfd_send_signal="invoke('pidfd_send_signal', -1, 0, 0, 0)",
        kcmp="invoke('kcmp', os.getpid(), os.getpid(), 1, 0, 0)",
        get_robust_list="invoke('get_robust_list', 0, bytearray(8), bytearray(8))",
        rt_sigqueueinfo="invoke('rt_sigqueueinfo', os.getpid(), 18, struct.pack('iii116x', 18, 0, -1))",
        rt_tgsigqueueinfo=(
            "invoke('rt_tgsigqueueinfo', os.getpid(), os.getpid(), 18, struct.pack('iii116x', 18, 0, -1))"
        ),
        prlimit64__of__PID__1="invoke('prlimit64', 1, 7, 0, bytearray(16))",
        setpriority__of__every__process="os.setpriority(os.PRIO_USER, 0, 1)",
        setpriority__of__PID__1="os.setpriority(os.PRIO_PROCESS, 1, 1)",
        sched_setaffinity__of__PID__1="os.sched_setaffinity(1, os.sched_getaffinity(1))",
        sched_setscheduler__SCHED_IDLE="os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))",
        sched_setparam="os.sched_setparam(0, os.sched_param(0))",
        sched_setattr="invoke('sched_setattr', 0, struct.pack('IIQiIQQQ', 48, 0, 0, 19, 0, 0, 0, 0), 0)",
        sched_getattr="invoke('sched_getattr', 0, bytearray(56), 56, 0)",
        ioprio_set="invoke('ioprio_set', 1, 0, 2 << 13 | 7)",
        ioprio_get="invoke('ioprio_get', 1, 0)",
        capset="invoke('capset', struct.pack('II', 0x20080522, 0), bytes(24))",
        prctl__PR_CAP_AMBIENT_RAISE="invoke('prctl', 47, 2, 99, 0, 0)",
        capget="invoke('capget', bytearray(struct.pack('II', 0x20080522, 0)), bytearray(24))",
    ),
    *_capable(
        prctl__PR_CAPBSET_DROP="invoke('prctl', 24, 40, 0, 0, 0)",
        prctl__PR_SET_SECUREBITS="invoke('prctl', 28, 0, 0, 0, 0)",
        setuid="os.setuid(0)",
        setgid="os.setgid(0)",
        setgroups="os.setgroups([0])",
        setresuid="os.setresuid(0, 0, 0)",
        setresgid="os.setresgid(0, 0, 0)",
        setreuid="os.setreuid(0, 0)",
        setregid="os.setregid(0, 0)",
    ),
]
_PAIR = "import socket; a, b = socket.socketpair()\n"
_FILTER_PROGRAM = "code = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0xFFFF))\n"
SOCKETS = [
    *_filter(
        message__out__of__band=_PAIR + "a.send(b'x', socket.MSG_OOB)",
        message__out__of__band__by__sendmsg=_PAIR + "a.sendmsg([b'x'], [], socket.MSG_OOB)",
        receiving__out__of__band=_PAIR + "b.recv(1, socket.MSG_OOB | socket.MSG_DONTWAIT)",
        receiving__out__of__band__by__recvmsg=(_PAIR + "b.recvmsg(1, 0, socket.MSG_OOB | socket.MSG_DONTWAIT)"),
        sendmmsg=_PAIR + "invoke('sendmmsg', a.fileno(), bytes(64), 1, 0)",
        recvmmsg=_PAIR + "invoke('recvmmsg', a.fileno(), bytes(64), 0, 0x40, 0)",
        setsockopt__SO_ATTACH_FILTER=_FILTER_PROGRAM
        + _PAIR
        + "a.setsockopt(1, 26, struct.pack('H6xQ', 1, ctypes.addressof(code)))",
        ioctl__SIOCGIFCONF=_PAIR + "invoke('ioctl', a.fileno(), 0x8912, bytearray(16))",
    ),
]
KERNEL = [
    *_filter(
        io_uring_setup="invoke('io_uring_setup', 8, bytearray(120))",
        io_uring_enter="invoke('io_uring_enter', -1, 0, 0, 0, 0, 0)",
        io_uring_register="invoke('io_uring_register', -1, 0, 0, 0)",
        io_setup="invoke('io_setup', 1, bytearray(8))",
        keyctl="invoke('keyctl', 0, -2, 1)",
        add_key="invoke('add_key', b'user\\0', b'x\\0', b'secret', 6, -2)",
        request_key="invoke('request_key', b'user\\0', b'none\\0', 0, -2)",
        personality__ADDR_NO_RANDOMIZE="invoke('personality', 0x40000)",
        personality__READ_IMPLIES_EXEC="invoke('personality', 0x400000)",
        personality__MMAP_PAGE_ZERO="invoke('personality', 0x100000)",
        personality__UNAME26="invoke('personality', 0x20000)",
        personality__PER_LINUX32="invoke('personality', 8)",
        personality__PER_LINUX="invoke('personality', 0)",
        personality__reading="invoke('personality', 0xffffffff)",
        shmget="invoke('shmctl', invoke('shmget', 0, 4096, 0o600), 0, 0)",
        semget="invoke('semctl', invoke('semget', 0, 1, 0o600), 0, 0, 0)",
        msgget="invoke('msgctl', invoke('msgget', 0, 0o600), 0, 0)",
        shmat="invoke('shmat', -1, 0, 0)",
        semop="invoke('semop', -1, bytes(6), 1)",
        msgsnd="invoke('msgsnd', -1, bytes(16), 1, 0)",
        mq_open="invoke('mq_open', b'box\\0', os.O_CREAT | os.O_RDWR, 0o600, 0)",
        mq_unlink="invoke('mq_unlink', b'none\\0')",
        signalfd4="invoke('signalfd4', -1, bytes(8), 8, 0)",
        futex__FUTEX_LOCK_PI="invoke('futex', bytearray(4), 6, 0, 0)",
        ioctl__TIOCSTI="invoke('ioctl', os.pipe()[0], 0x5412, b'x')",
        ioctl__TIOCLINUX="invoke('ioctl', os.pipe()[0], 0x541C, b'x')",
        ioctl__TIOCSCTTY="invoke('ioctl', os.pipe()[0], 0x540E, 0)",
        ioctl__FICLONE="invoke('ioctl', os.pipe()[0], 0x40049409, 0)",
        ioctl__FS_IOC_SETFLAGS="invoke('ioctl', os.open('/tmp', 0), 0x40086602, bytes(8))",
        ioctl__NS_GET_USERNS="invoke('ioctl', os.open('/proc/self/ns/uts', 0), 0xB701, 0)",
        prctl__PR_SET_DUMPABLE__on="invoke('prctl', 4, 1, 0, 0, 0)",
        prctl__PR_SET_CHILD_SUBREAPER="invoke('prctl', 36, 1, 0, 0, 0)",
        prctl__PR_SET_SECCOMP="invoke('prctl', 22, 3, 0, 0, 0)",
        prctl__PR_SET_MEMORY_MERGE="invoke('prctl', 67, 0, 0, 0, 0)",
        clock_settime="invoke('clock_settime', 99, bytes(16))",
        clock_adjtime="invoke('clock_adjtime', 0, bytearray(208))",
        adjtimex="invoke('adjtimex', bytearray(208))",
        sysfs="invoke('sysfs', 3)",
        ustat="invoke('ustat', 0, bytearray(32))",
    ),
    *_capable(
        bpf="invoke('bpf', 0, struct.pack('IIII', 2, 4, 8, 1) + bytes(112), 128)",
        perf_event_open="invoke('perf_event_open', struct.pack('IIQ', 1, 64, 0) + bytes(48), 0, -1, -1, 0)",
        fanotify_init="invoke('fanotify_init', 0, 0)",
        init_module="invoke('init_module', bytes(64), 64, b'\\0')",
        finit_module="invoke('finit_module', -1, b'\\0', 0)",
        delete_module="invoke('delete_module', b'no_such_module\\0', 0x800)",
        kexec_load="invoke('kexec_load', 0, 999, 0, 0)",
        kexec_file_load="invoke('kexec_file_load', -1, -1, 0, 0, 0)",
        reboot="invoke('reboot', 0, 0, 0, 0)",
        acct="invoke('acct', b'/no/such/file\\0')",
        syslog="invoke('syslog', 10, 0, 0)",
        sethostname="invoke('sethostname', b'sandbox', 7)",
        setdomainname="invoke('setdomainname', b'', 0)",
        settimeofday="invoke('settimeofday', struct.pack('qq', 0, 10**7), 0)",
        iopl="invoke('iopl', 3)",
        ioperm="invoke('ioperm', 0x80, 1, 1)",
        vhangup="invoke('vhangup')",
    ),
    Attempt(
        "timer_create",
        "invoke('timer_create', 2, 0, bytearray(8))",
        refusal="ENOSYS",
    ),
    *(
        Attempt(name, f"invoke('{name}', {arguments})", refusal="EPERM|ENOSYS")
        for name, arguments in {
            "landlock_create_ruleset": "0, 0, 1",
            "futex_waitv": "bytes(24), 0, 0, 0, 0",
            "futex_wake": "bytearray(4), 1, 1, 2",
            "lsm_list_modules": "bytearray(64), bytearray(struct.pack('I', 64)), 0",
        }.items()
    ),
]
FOREIGN = [
    Attempt("int 0x80 getpid", "int80(20)", refusal="SIGSYS"),
    Attempt(
        "int 0x80 socketcall AF_ALG",
        "import mmap; page = mmap.mmap(-1, 4096, flags=0x62)  # private, anonymous, below 4 GiB\n"
        "page.write(struct.pack('III', 38, 5, 0))\n"
        "int80(102, 1, ctypes.addressof(ctypes.c_char.from_buffer(page)))",
        refusal="SIGSYS",
    ),
    Attempt("int 0x80 socket AF_INET", "int80(359, 2, 1)", refusal="SIGSYS"),
    Attempt("x32 getpid", "if raw(39 | 1 << 30)[0] == -1: raise OSError(38, '')", refusal="SIGSYS"),
]

ATTEMPTS = (*NAMESPACES, *MOUNTS, *PAGES, *OTHERS, *SOCKETS, *KERNEL, *FOREIGN)
