"""Files and folders: temporary, copied, packed, mapped, locked.

Each function is sent as source, so it imports what it uses. It raises if something does not work.
"""

from __future__ import annotations


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
    os.set_inheritable(file, True)  # noqa: FBT003 - it has no name
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
        shutil.unpack_archive(made, f"/tmp/unpacked-{kind}", filter=None if kind == "zip" else "data")
        assert pathlib.Path(f"/tmp/unpacked-{kind}/data").read_bytes() == data
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b", data)
    assert zipfile.ZipFile(memory).read("a/b") == data
    with tarfile.open("/tmp/packed-gztar.tar.gz") as archive:
        assert max(archive.getnames()) == "./link"


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
