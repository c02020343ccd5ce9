"""Doing several things: threads, processes, programs, what they share and how they wait.

Each function is sent as source, so it imports what it uses. It raises if something does not work.
"""

from __future__ import annotations


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
    errors: list[Exception] = []

    def run() -> None:
        try:
            asyncio.run(everything())
        except Exception as error:  # noqa: BLE001 - raised below, on the thread of the cell
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
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128)),  # noqa: PLW1509 - as cells do
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
    cp n m; mv m o; ln -s o l; cat l | tail -1; find . -type f | sort | tr '\\n' ' '; cmp n o
    date -u +%Y > /dev/null; printf 'a b\\n' | cut -d' ' -f2
    tar cf t.tar n; gzip t.tar; gunzip t.tar.gz; tar xf t.tar
    touch -d 2020-01-01 n; chmod 600 n; df . > /dev/null; du -s . > /dev/null
    nice true; timeout 5 true
    dd if=n of=d bs=64 count=2 2> /dev/null; sha256sum n > /dev/null; id -g; xargs -n 500 echo < n | wc -l
    rm -r ../tools
    """
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done
    expected = "271 5 500500 1000 1000 1000 ./n ./o b 64000 2"
    assert done.stdout.split() == expected.split(), done.stdout


def listings() -> None:
    """What ls and stat say of a file."""
    import subprocess

    script = "cd /tmp; echo text > f; touch -d 2020-01-01 f; ln -s f l; ls f l; ls -l l; stat -c '%Y %s %a' f; rm f l"
    said = subprocess.check_output(script, shell=True, text=True).split()
    assert said[:2] == ["f", "l"]
    assert said[-6:] == ["l", "->", "f", "1577836800", "5", "644"], said


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
        assert other.buf is not None
        other.buf[:5] = b"hello"
        other.close()

    worker = multiprocessing.get_context("fork").Process(target=write, args=(block.name,))
    worker.start()
    worker.join(10)
    assert block.buf is not None
    assert bytes(block.buf[:5]) == b"hello"
    block.close()
    block.unlink()
