"""Who is compared, how each is driven, and what isolation each gives by default."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.bench.peers import script
from tests.bench.peers.script import Dialect

DRIVERS = "tests.bench.peers.drivers"


@dataclass(frozen=True, slots=True)
class System:
    """One line of the table.

    Attributes:
        name: in the table.
        driver: its module in ``drivers/``.
        arguments: of the driver; ``{image}`` stands for the peers' image.
        requirements: its file in ``requirements/``, without the ending; empty for this project's own environment.
        dialect: how its root model writes; None for a system without a loop.
        isolation: what stands between a cell and the host.
        lacks: why a column is empty.
    """

    name: str
    driver: str
    isolation: str
    requirements: str = ""
    arguments: tuple[str, ...] = ()
    dialect: Dialect | None = None
    lacks: str = ""
    notes: tuple[str, ...] = field(default=())


_OURS = (
    "container without network, mount, port or privilege: uid 64000, no capability, own seccomp filter, read-only root "
    "file system; bounds on memory, processes, disk, output and a cell's time; all read back before the first cell"
)
_IMAGE = "runs in our image with root, a pip and its packages added, by its option `image`"

SYSTEMS = (
    System("rlm-sandbox, cold", "ours", _OURS, dialect=script.OURS),
    System("rlm-sandbox, out of a pool", "ours", "the same", arguments=("pool",), dialect=script.OURS),
    System(
        "rlms, docker",
        "reference",
        "container with root, the default network and capabilities, a host folder mounted to write, no bound on "
        "memory, processes or a cell's time; the way to the model is a port on all of the host's addresses",
        requirements="rlms",
        arguments=("docker", "{image}"),
        dialect=script.REFERENCE,
        notes=(_IMAGE, "its `pip install` at each start finds all in place, which a network would not make faster"),
    ),
    System(
        "rlms, in-process (its default)",
        "reference",
        "none: cells run in the host's process, with its files, network and keys",
        requirements="rlms",
        arguments=("local",),
        dialect=script.REFERENCE,
    ),
    System(
        "dspy.RLM",
        "dspy_rlm",
        "CPython in WebAssembly in a Deno process without permissions; no bound on memory or a cell's time",
        requirements="dspy",
        dialect=script.FIELDS,
        notes=(
            "`max_llm_calls` raised from 50, and its cache off, or later rounds would be answered from it",
            "a module that its runner loads from a web site is `read_lines.ts` here, by Deno's `--import-map`",
        ),
    ),
    System(
        "rlm-harness, container",
        "harness",
        "container with root, no network, no capability, bounded memory and processes; root file system to write; "
        "the agent that speaks to the host shares a process with the cells",
        requirements="rlm-harness",
        arguments=("{image}",),
        dialect=script.JSON,
        notes=(
            _IMAGE,
            "`max_llm_calls` raised from 30",
            "the text is a plain field, as in its README; with its `LargeText`, cells read a file themselves",
        ),
    ),
    System(
        "llm-sandbox, interactive session",
        "session",
        "container with root, the default network and capabilities, 1 GB of memory; no other bound",
        requirements="llm-sandbox",
        arguments=("{image}",),
        lacks="a sandbox alone: no loop, and no way from a cell to a model",
        notes=(_IMAGE, "the start holds the virtual environment that it makes in each container"),
    ),
)
