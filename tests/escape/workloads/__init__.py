"""What code in a box may reasonably do, a function each."""

from __future__ import annotations

from tests.escape.workloads import computing, files, processes, waiting

WORKLOADS = (
    computing.numpy_linear_algebra,
    computing.numpy_files,
    computing.pandas_tables,
    computing.databases,
    computing.standard_library,
    computing.foreign_functions,
    computing.errors_and_tracing,
    computing.who_and_where,
    processes.threads,
    processes.executors,
    processes.event_loop,
    processes.subprocesses,
    processes.shell_tools,
    processes.listings,
    processes.forks,
    processes.multiprocessing_fork,
    processes.multiprocessing_spawn,
    processes.shared_memory,
    files.temporary_files,
    files.file_trees,
    files.folders_by_descriptor,
    files.archives,
    files.memory_maps,
    files.locks_limits_and_priorities,
    waiting.readiness,
    waiting.unix_sockets,
    waiting.signals_and_timers,
)
