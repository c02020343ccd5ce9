"""What code in a box may reasonably do, a function each: sent as source, so it imports what it uses, and raises if it fails."""

from __future__ import annotations


def numpy_linear_algebra() -> None:
    """Matrix products across threads, decompositions, transforms, random numbers."""
    from importlib import import_module

    np = import_module("numpy")
    generator = np.random.default_rng(7)
    big = generator.standard_normal((700, 700))
    assert np.allclose(big @ np.linalg.inv(big), np.eye(700), atol=1e-6)
    values, vectors = np.linalg.eigh(big + big.T)
    assert np.allclose(vectors @ np.diag(values) @ vectors.T, big + big.T)
    left, middle, right = np.linalg.svd(big[:50])
    assert np.allclose(left @ np.diag(middle) @ right[:50], big[:50])
    assert np.allclose(np.fft.irfft(np.fft.rfft(big[0]), 700), big[0])
    assert abs(generator.normal(size=100_000).mean()) < 0.05


def numpy_files() -> None:
    """Arrays saved, loaded and mapped into memory."""
    from importlib import import_module

    np = import_module("numpy")
    array = np.arange(100_000).reshape(100, 1000)
    np.savez_compressed("/tmp/arrays.npz", first=array, second=array * 2)
    with np.load("/tmp/arrays.npz") as loaded:
        assert (loaded["second"] == array * 2).all()
    mapped = np.memmap("/tmp/mapped", dtype="int64", mode="w+", shape=array.shape)
    mapped[:] = array
    mapped.flush()
    assert (np.fromfile("/tmp/mapped", dtype="int64") == array.ravel()).all()


def pandas_tables() -> None:
    """Grouping, joining, resampling, times with zones, CSV and JSON."""
    import io
    from importlib import import_module

    pd = import_module("pandas")
    frame = pd.DataFrame({"key": list("abcab") * 200, "value": range(1000)})
    frame["when"] = pd.date_range("2026-01-01", periods=1000, freq="h", tz="Europe/Paris")
    sums = frame.groupby("key")["value"].agg(["sum", "mean", "count"])
    assert sums["count"].tolist() == [400, 400, 200]
    joined = frame.merge(pd.DataFrame({"key": ["a", "b"], "weight": [1.5, 2.5]}), on="key", how="left")
    assert joined["weight"].isna().sum() == 200
    assert len(frame.set_index("when")["value"].resample("D").sum()) in (42, 43)
    frame.to_csv("/tmp/table.csv", index=False)
    again = pd.read_csv("/tmp/table.csv", parse_dates=["when"])
    assert again["value"].sum() == frame["value"].sum()
    assert pd.read_json(io.StringIO(frame[["key", "value"]].to_json())).shape == (1000, 2)
    assert frame.pivot_table(index="key", values="value").shape == (3, 1)


def threads() -> None:
    """Threads, their locks, queues, barriers and thread-local values."""
    import queue
    import threading

    jobs: queue.Queue[int | None] = queue.Queue()
    found: list[int] = []
    barrier = threading.Barrier(8)
    local = threading.local()

    def work() -> None:
        local.seen = 0
        barrier.wait(10)
        while (job := jobs.get(timeout=10)) is not None:
            local.seen += 1
            found.append(job * job)
        assert local.seen >= 0

    workers = [threading.Thread(target=work, name=f"worker-{n}") for n in range(8)]
    for worker in workers:
        worker.start()
    for job in [*range(100), *[None] * 8]:
        jobs.put(job)
    for worker in workers:
        worker.join(10)
    assert sorted(found) == [n * n for n in range(100)]


def executors() -> None:
    """Pools of threads and of processes."""
    from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(abs, range(-100, 0))) == 5050
    with ProcessPoolExecutor(2) as pool:
        assert sum(pool.map(abs, range(-100, 0), chunksize=25)) == 5050


def event_loop() -> None:
    """asyncio: tasks, threads, subprocesses with pipes, a Unix socket server."""
    import asyncio
    import threading

    async def everything() -> None:
        async with asyncio.TaskGroup() as tasks:
            naps = [tasks.create_task(asyncio.sleep(0.001, n)) for n in range(50)]
        assert [nap.result() for nap in naps] == list(range(50))
        assert await asyncio.to_thread(sum, range(10)) == 45
        pipe = asyncio.subprocess.PIPE
        shell = await asyncio.create_subprocess_shell("cat; exit 3", stdin=pipe, stdout=pipe)
        assert (await shell.communicate(b"through a pipe"))[0] == b"through a pipe"
        assert shell.returncode == 3
        child = await asyncio.create_subprocess_exec("sleep", "60")
        child.terminate()
        assert await child.wait() == -15

        async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.readline()).upper())
            await writer.drain()
            writer.close()

        server = await asyncio.start_unix_server(upper, "/tmp/upper.sock")
        async with server:
            reader, writer = await asyncio.open_unix_connection("/tmp/upper.sock")
            writer.write(b"hello\n")
            assert await reader.readline() == b"HELLO\n"
            writer.close()

    # The REPL has a loop of its own on this thread.
    errors: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(everything())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert not errors, errors
    assert not thread.is_alive()


def subprocesses() -> None:
    """Programs run with pipes, deadlines, other folders, environments, sessions and limits."""
    import contextlib
    import os
    import resource
    import subprocess

    assert subprocess.run(["sh", "-c", "echo $((6*7))"], capture_output=True, check=True).stdout == b"42\n"
    assert subprocess.check_output("sort -r | head -1", shell=True, input=b"a\nc\nb\n") == b"c\n"
    assert subprocess.run(["false"], check=False).returncode == 1
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(["sleep", "60"], timeout=0.1, check=True)
        raise AssertionError("sleep was not ended")
    with open("/etc/hostname") as inherited:
        child = subprocess.Popen(
            ["sh", "-c", f"pwd; echo $WHO; ulimit -n; cat /dev/fd/{inherited.fileno()}"],
            cwd="/tmp",
            env={"WHO": "box", "PATH": os.environ["PATH"]},
            pass_fds=[inherited.fileno()],
            start_new_session=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128)),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.communicate()[0].split() == ["/tmp", "box", "128", "sandbox"]
    assert os.system("exit 5") == 5 << 8
    with os.popen("uname") as pipe:
        assert pipe.read() == "Linux\n"
    pid = os.posix_spawn("/bin/true", ["true"], {}, setpgroup=0)
    assert os.waitpid(pid, 0)[1] == 0


def shell_tools() -> None:
    """The usual programs of a shell, in a pipeline and on files."""
    import subprocess

    script = """
    set -eu; cd /tmp; mkdir tools; cd tools
    seq 1000 > n; grep -c 9 n; sed -n 5p n; awk '{s += $1} END {print s}' n; sort -rn n | head -1; wc -l < n
    cp n m; mv m o; ln -s o l; cat l | tail -1; find . -type f | sort | tr '\\n' ' '; cmp n o; ls -l l > /dev/null
    date -u +%Y > /dev/null; printf 'a b\\n' | cut -d' ' -f2; tar cf t.tar n; gzip t.tar; gunzip t.tar.gz; tar xf t.tar
    touch -d 2020-01-01 n; stat -c %Y n; chmod 600 n; df . > /dev/null; du -s . > /dev/null; nice true; timeout 5 true
    dd if=n of=d bs=64 count=2 2> /dev/null; sha256sum n > /dev/null; id -u; xargs -n 500 echo < n | wc -l; rm -r ../tools
    """
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout.split() == "271 5 500500 1000 1000 1000 ./n ./o b 1577836800 64000 2".split(), done.stdout


def forks() -> None:
    """fork by hand, a pipe between, exit codes and signals read back."""
    import os
    import signal

    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, b"from the child")
        os._exit(7)
    assert os.read(reader, 100) == b"from the child"
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    pid = os.fork()
    if pid == 0:
        signal.pause()
    os.kill(pid, signal.SIGTERM)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGTERM
    os.close(reader)
    os.close(writer)


def multiprocessing_fork() -> None:
    """A pool, queues, locks, shared values, pipes and a manager, forked."""
    import multiprocessing

    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        assert pool.map(abs, range(-10, 0)) == list(range(10, 0, -1))
        assert pool.starmap_async(pow, [(2, 3), (3, 2)]).get(10) == [8, 9]
    value, lock, results = context.Value("i", 0), context.Lock(), context.Queue()

    def add() -> None:
        for _ in range(100):
            with lock:
                value.value += 1
        results.put("done")

    workers = [context.Process(target=add) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=10) for _ in workers] == ["done"] * 3
    for worker in workers:
        worker.join(10)
    assert value.value == 300
    with context.Manager() as manager:
        shared = manager.dict()
        worker = context.Process(target=shared.update, args=({"a": 1},))
        worker.start()
        worker.join(10)
        assert shared.copy() == {"a": 1}


def multiprocessing_spawn() -> None:
    """A pool of fresh interpreters, and of a fork server."""
    import math
    import multiprocessing

    for method in ("spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.map(math.factorial, [5, 6]) == [120, 720]


def shared_memory() -> None:
    """A block of memory shared by name with another process."""
    import multiprocessing
    from multiprocessing import shared_memory

    block = shared_memory.SharedMemory(create=True, size=1 << 16)

    def write(name: str) -> None:
        other = shared_memory.SharedMemory(name)
        other.buf[:5] = b"hello"
        other.close()

    worker = multiprocessing.get_context("fork").Process(target=write, args=(block.name,))
    worker.start()
    worker.join(10)
    assert bytes(block.buf[:5]) == b"hello"
    block.close()
    block.unlink()


def databases() -> None:
    """SQLite in memory and on disk, with transactions and a write-ahead log."""
    import sqlite3

    for where in (":memory:", "/tmp/box.sqlite"):
        connection = sqlite3.connect(where)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (n INTEGER, s TEXT)")
        with connection:
            connection.executemany("INSERT INTO t VALUES (?, ?)", [(n, str(n)) for n in range(1000)])
        assert connection.execute("SELECT sum(n) FROM t WHERE s LIKE '9%'").fetchone() == (95904,)
        connection.execute("VACUUM")
        connection.close()


def temporary_files() -> None:
    """Files and folders that clean up after themselves, and what is written to them."""
    import os
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        with tempfile.NamedTemporaryFile(dir=folder) as named, open(named.name, "rb") as again:
            named.write(b"x" * 100_000)
            named.flush()
            os.fsync(named.fileno())
            assert os.stat(named.name).st_size == 100_000
            assert again.read(3) == b"xxx"
        with tempfile.TemporaryFile("w+") as unnamed:
            unnamed.write("line\n" * 10)
            unnamed.seek(0)
            assert len(unnamed.readlines()) == 10
            unnamed.truncate(5)
            os.posix_fallocate(unnamed.fileno(), 0, 4096)
            assert os.fstat(unnamed.fileno()).st_size == 4096
        with tempfile.SpooledTemporaryFile(max_size=10) as spooled:
            spooled.write(b"more than fits")
            assert spooled.tell() == 14


def file_trees() -> None:
    """Walking, copying, moving, linking and dating files; their modes and sizes."""
    import glob
    import os
    import pathlib
    import shutil

    root = pathlib.Path("/tmp/tree")
    (root / "a" / "b").mkdir(parents=True)
    for n in range(20):
        (root / "a" / f"{n}.txt").write_text("text\n" * n, encoding="utf-8")
    (root / "a" / "b" / "deep").write_bytes(b"0" * 300_000)
    os.symlink("0.txt", root / "a" / "soft")
    os.link(root / "a" / "1.txt", root / "a" / "hard")
    assert os.readlink(root / "a" / "soft") == "0.txt"
    assert os.stat(root / "a" / "hard").st_nlink == 2
    os.utime(root / "a" / "2.txt", (1_000_000_000, 1_000_000_000))
    os.chmod(root / "a" / "2.txt", 0o640)
    shutil.copytree(root, "/tmp/copy", symlinks=True)
    again = os.stat("/tmp/copy/a/2.txt")
    assert (again.st_mtime, again.st_mode & 0o777) == (1_000_000_000, 0o640)
    assert sum(len(files) for _, _, files in os.walk("/tmp/copy")) == 23
    with os.scandir("/tmp/copy/a") as entries:
        assert sum(entry.is_file(follow_symlinks=False) for entry in entries) == 21
    shutil.move("/tmp/copy/a", "/tmp/copy/moved")
    os.replace("/tmp/copy/moved/3.txt", "/tmp/copy/moved/4.txt")
    assert len(glob.glob("/tmp/copy/**/*.txt", recursive=True)) == 19
    shutil.copy2("/etc/passwd", "/tmp/copy/passwd")
    os.truncate("/tmp/copy/passwd", 10)
    assert os.path.getsize("/tmp/copy/passwd") == 10
    assert os.access("/tmp/copy/passwd", os.W_OK)
    os.umask(os.umask(0o022))
    assert shutil.disk_usage("/tmp").free > 0
    os.listxattr("/tmp/copy/passwd")
    os.chdir("/tmp/copy")
    assert os.getcwd() == "/tmp/copy"
    os.chdir("/work")
    shutil.rmtree("/tmp/copy")
    shutil.rmtree(root)


def folders_by_descriptor() -> None:
    """The calls that take a folder's descriptor, and vectored and positioned reading and writing."""
    import os

    os.mkdir("/tmp/fds")
    folder = os.open("/tmp/fds", os.O_RDONLY | os.O_DIRECTORY)
    file = os.open("f", os.O_RDWR | os.O_CREAT, 0o600, dir_fd=folder)
    assert os.writev(file, [b"ab", b"cd"]) == 4
    assert os.pwrite(file, b"XY", 1) == 2
    assert os.pread(file, 4, 0) == b"aXYd"
    os.pwritev(file, [b"zz"], 0)
    buffer = bytearray(2)
    assert os.preadv(file, [buffer], 2) == 2
    os.lseek(file, 0, os.SEEK_SET)
    assert os.readv(file, [bytearray(2), bytearray(2)]) == 4
    os.fchmod(file, 0o640)
    os.fdatasync(file)
    os.ftruncate(file, 2)
    os.mkdir("d", dir_fd=folder)
    os.symlink("f", "l", dir_fd=folder)
    os.link("f", "h", src_dir_fd=folder, dst_dir_fd=folder)
    os.rename("h", "d/h", src_dir_fd=folder, dst_dir_fd=folder)
    assert os.stat("l", dir_fd=folder).st_size == 2
    assert os.readlink("l", dir_fd=folder) == "f"
    os.utime("f", ns=(1, 1), dir_fd=folder)
    os.chmod("f", 0o600, dir_fd=folder)
    os.access("f", os.R_OK, dir_fd=folder)
    os.chown("f", os.getuid(), -1, dir_fd=folder)
    os.fchown(file, -1, os.getgid())
    os.unlink("l", dir_fd=folder)
    os.fchdir(folder)
    assert sorted(os.listdir(folder)) == ["d", "f"]
    os.chdir("/work")
    os.fstatvfs(file)
    os.set_inheritable(file, True)
    os.dup2(file, 200)
    os.dup2(file, 201)
    os.closerange(200, 202)
    os.close(file)
    os.close(folder)


def archives() -> None:
    """zip and tar, every compression, and what shutil makes of them."""
    import bz2
    import gzip
    import io
    import lzma
    import pathlib
    import shutil
    import tarfile
    import zipfile
    import zlib

    data = b"some text to be made small " * 5000
    for codec in (bz2, gzip, lzma, zlib):
        assert codec.decompress(codec.compress(data)) == data
    folder = pathlib.Path("/tmp/to_pack")
    folder.mkdir()
    (folder / "data").write_bytes(data)
    (folder / "link").symlink_to("data")
    for kind in ("zip", "gztar", "xztar"):
        made = shutil.make_archive(f"/tmp/packed-{kind}", kind, folder)
        shutil.unpack_archive(made, f"/tmp/unpacked-{kind}", **({} if kind == "zip" else {"filter": "data"}))
        assert pathlib.Path(f"/tmp/unpacked-{kind}/data").read_bytes() == data
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b", data)
    assert zipfile.ZipFile(memory).read("a/b") == data
    with tarfile.open("/tmp/packed-gztar.tar.gz") as archive:
        assert sorted(archive.getnames())[-1] == "./link"


def memory_maps() -> None:
    """Files and anonymous memory mapped, resized, advised and flushed."""
    import mmap

    with open("/tmp/mapped-file", "w+b") as file:
        file.truncate(8192)
        with mmap.mmap(file.fileno(), 8192) as mapped:
            mapped[:5] = b"hello"
            mapped.flush()
            mapped.madvise(mmap.MADV_SEQUENTIAL)
            mapped.resize(16384)
            assert mapped[:5] == b"hello"
        file.seek(0)
        assert file.read(5) == b"hello"
    with mmap.mmap(-1, 1 << 22) as anonymous:
        anonymous.madvise(mmap.MADV_HUGEPAGE)
        anonymous.write(b"x" * (1 << 22))


def readiness() -> None:
    """select, poll, epoll, selectors; pipes, socket pairs, event and timer descriptors."""
    import os
    import select
    import selectors
    import socket
    import time

    left, right = socket.socketpair()
    left.setblocking(False)
    right.sendall(b"x")
    assert select.select([left], [], [], 5)[0] == [left]
    poll = select.poll()
    poll.register(left, select.POLLIN)
    assert poll.poll(5000) == [(left.fileno(), select.POLLIN)]
    with select.epoll() as epoll:
        epoll.register(left, select.EPOLLIN)
        assert epoll.poll(5) == [(left.fileno(), select.EPOLLIN)]
    with selectors.DefaultSelector() as selector:
        selector.register(left, selectors.EVENT_READ)
        assert len(selector.select(5)) == 1
    event = os.eventfd(0)
    os.eventfd_write(event, 3)
    assert os.eventfd_read(event) == 3
    timer = os.timerfd_create(time.CLOCK_MONOTONIC)
    os.timerfd_settime(timer, initial=0.01)
    assert os.read(timer, 8)[0] >= 1
    reader, writer = os.pipe2(os.O_NONBLOCK)
    assert os.get_blocking(reader) is False
    for descriptor in (event, timer, reader, writer):
        os.close(descriptor)
    left.close()
    right.close()


def unix_sockets() -> None:
    """A server on a path, options, messages with descriptors, datagrams."""
    import os
    import socket
    import socketserver
    import threading

    class Echo(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.readline())

    with socketserver.ThreadingUnixStreamServer("/tmp/echo.sock", Echo) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect("/tmp/echo.sock")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > 0
            client.sendall(b"echo\n")
            assert client.makefile("rb").readline() == b"echo\n"
            assert client.getpeername() == "/tmp/echo.sock"
            client.shutdown(socket.SHUT_RDWR)
        server.shutdown()
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with open("/etc/hostname", "rb") as file:
        socket.send_fds(left, [b"take"], [file.fileno()])
    message, descriptors, _, _ = socket.recv_fds(right, 10, 1)
    assert message == b"take"
    assert os.read(descriptors[0], 7) == b"sandbox"
    os.close(descriptors[0])
    left.close()
    right.close()


def signals_and_timers() -> None:
    """Alarms, interval timers, waiting for signals, masks, signals to threads."""
    import os
    import signal
    import threading
    import time

    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: seen.append(number))
    signal.alarm(1)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    while not seen:
        time.sleep(0.005)
    signal.signal(signal.SIGALRM, before)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
    assert signal.SIGUSR1 in signal.sigpending()
    assert signal.sigwait({signal.SIGUSR1}) == signal.SIGUSR1
    assert signal.sigtimedwait({signal.SIGUSR2}, 0.01) is None
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1, signal.SIGUSR2})
    assert time.clock_getres(time.CLOCK_MONOTONIC) > 0
    assert os.times().elapsed > 0
    assert time.process_time() + time.thread_time() > 0
    assert time.strftime("%Z") == "UTC"


def locks_limits_and_priorities() -> None:
    """Locked files, resource limits, priorities, the scheduler's view, usage."""
    import fcntl
    import os
    import resource

    with open("/tmp/locked", "w") as file, open("/tmp/locked") as other:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(file, fcntl.LOCK_UN)
        else:
            raise AssertionError("two had the lock")
        fcntl.lockf(file, fcntl.LOCK_EX)
        assert fcntl.fcntl(file, fcntl.F_GETFD) == fcntl.FD_CLOEXEC
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0
    pid = os.fork()
    if pid == 0:
        os._exit(os.nice(5))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0))
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    os.sched_yield()
    assert os.cpu_count()
    assert os.sysconf("SC_PAGE_SIZE") == resource.getpagesize()


def who_and_where() -> None:
    """Identity, platform, and the shape of the terminal there is not."""
    import getpass
    import os
    import platform
    import shutil
    import sys

    assert os.getuid() == os.geteuid() == os.getresuid()[2]
    assert os.getgid() == os.getegid()
    assert os.getgroups() in ([], [os.getgid()])
    assert getpass.getuser() == "box"
    assert platform.system() == "Linux"
    assert platform.platform()
    assert os.getsid(0) == os.getpgid(0) == os.getpid()
    assert os.getppid() == 1
    assert shutil.get_terminal_size((80, 24)) == (80, 24)
    assert not os.isatty(0)
    assert not sys.stdout.isatty()
    assert len(os.getrandom(16)) == len(os.urandom(16))
    assert len(os.getloadavg()) == 3


def standard_library() -> None:
    """Numbers, text, time zones, randomness, hashes, serialisation."""
    import csv
    import datetime
    import decimal
    import hashlib
    import io
    import json
    import locale
    import pickle
    import random
    import re
    import secrets
    import statistics
    import uuid
    import zoneinfo

    decimal.getcontext().prec = 50
    assert str(decimal.Decimal(2).sqrt()).startswith("1.414213562373095048801688724209698078569671875376")
    assert re.sub(r"(\w+) (\w+)", r"\2 \1", "hello world") == "world hello"
    assert json.loads(json.dumps({"ä": [1, None, 2.5]})) == {"ä": [1, None, 2.5]}
    summer = datetime.datetime(2026, 7, 1, tzinfo=zoneinfo.ZoneInfo("America/New_York"))
    assert summer.utcoffset() == datetime.timedelta(hours=-4)
    locale.setlocale(locale.LC_ALL, "C.UTF-8")
    assert list(csv.reader(io.StringIO('a,"b,c"\n'))) == [["a", "b,c"]]
    assert pickle.loads(pickle.dumps({1, 2})) == {1, 2}
    assert len({uuid.uuid1(), uuid.uuid4()}) == 2
    assert len(secrets.token_hex(8)) == 16
    assert 0 <= random.SystemRandom().random() < 1
    assert len(hashlib.scrypt(b"p", salt=b"s", n=16, r=1, p=1)) == 64
    assert hashlib.sha3_256(b"").hexdigest().startswith("a7ffc6f8")
    assert statistics.median(range(9)) == 4


def foreign_functions() -> None:
    """ctypes: the C library, callbacks, buffers."""
    import ctypes

    libc = ctypes.CDLL(None)
    numbers = (ctypes.c_int * 5)(5, 3, 1, 4, 2)
    compare_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
    compare = compare_type(lambda left, right: left[0] - right[0])
    libc.qsort(numbers, 5, ctypes.sizeof(ctypes.c_int), compare)
    assert list(numbers) == [1, 2, 3, 4, 5]
    assert libc.strlen(ctypes.create_string_buffer(b"seven..")) == 7


def errors_and_tracing() -> None:
    """Warnings, tracebacks, profiles, coverage of memory, deep recursion."""
    import cProfile
    import contextlib
    import faulthandler
    import gc
    import sys
    import traceback
    import tracemalloc

    try:
        raise ValueError("shown")
    except ValueError:
        assert "shown" in traceback.format_exc()
    profile = cProfile.Profile()
    profile.runcall(sorted, range(1000))
    assert profile.getstats()
    tracemalloc.start()
    kept = [bytes(1000) for _ in range(1000)]
    assert tracemalloc.get_traced_memory()[0] > 1_000_000
    tracemalloc.stop()
    del kept
    with open("/tmp/faults", "w") as file:
        faulthandler.dump_traceback(file)

    def deeper(n: int) -> int:
        return deeper(n + 1)

    with contextlib.suppress(RecursionError):
        deeper(0)
    gc.collect()
    assert sys.getrecursionlimit() >= 1000


WORKLOADS = (
    numpy_linear_algebra,
    numpy_files,
    pandas_tables,
    threads,
    executors,
    event_loop,
    subprocesses,
    shell_tools,
    forks,
    multiprocessing_fork,
    multiprocessing_spawn,
    shared_memory,
    databases,
    temporary_files,
    file_trees,
    folders_by_descriptor,
    archives,
    memory_maps,
    readiness,
    unix_sockets,
    signals_and_timers,
    locks_limits_and_priorities,
    who_and_where,
    standard_library,
    foreign_functions,
    errors_and_tracing,
)
