"""Which journal is meant: by its file, by a run's id or its beginning, or as the last one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from orchestrator.errors import ConfigurationError

# What a run may be called instead of by its id: the one that was recorded last.
LAST = "last"


def journals(directory: Path) -> list[Path]:
    """Return the journals in a folder, by name; none where there is no folder."""
    from orchestrator.trajectory.journal import SUFFIX

    return sorted(directory.glob(f"*{SUFFIX}")) if directory.is_dir() else []


def find(name: str, directory: Path) -> Path:
    """Return the journal that ``name`` is the path of, or the one in ``directory`` whose run id begins with it.

    ``last`` is the one that was written last, of those that are no child run's.

    Raises:
        ConfigurationError: there is none, or more than one.
    """
    if not name:
        raise ConfigurationError("the run is empty: give a file, or a run's id or its beginning")
    if Path(name).is_file():
        return Path(name)
    if name == LAST:
        return last(path for path in journals(directory) if "." not in path.stem)
    starting = [path for path in journals(directory) if path.stem.startswith(name)]
    # The id of a child run begins with its parent's: what is asked for is the parent.
    ids = [f"{path.stem}." for path in starting]
    starting = [path for path in starting if not any(path.stem.startswith(parent) for parent in ids)]
    found = [path for path in starting if path.stem == name] or starting
    if not found:
        raise ConfigurationError(
            f"no journal {name!r}: it is neither a file nor a run in {directory} (see rlm-sandbox journal list)"
        )
    if len(found) > 1:
        raise ConfigurationError(f"{len(found)} runs in {directory} begin with {name!r}: give more of the id")
    return found[0]


def last(paths: Iterable[Path]) -> Path:
    """Return the journal that was written last.

    Raises:
        ConfigurationError: there is none.
    """
    found = max(paths, key=lambda path: path.stat().st_mtime_ns, default=None)
    if found is None:
        raise ConfigurationError("nothing was recorded yet: there is no last one")
    return found
