"""Computing: numbers, tables, texts, and looking at one's own program.

Each function is sent as source, so it imports what it uses. It raises if something does not work.
"""

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


def standard_library() -> None:
    """Numbers, text, time zones, randomness, hashes, serialisation."""
    import csv
    import datetime as dt
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
    summer = dt.datetime(2026, 7, 1, tzinfo=zoneinfo.ZoneInfo("America/New_York"))
    assert summer.utcoffset() == dt.timedelta(hours=-4)
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
    import contextlib
    import cProfile
    import faulthandler
    import gc
    import sys
    import traceback
    import tracemalloc

    try:
        int("shown")
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
