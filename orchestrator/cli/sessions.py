"""Which session is meant, and the files that its questions were about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli.common import PROG
from orchestrator.cli.runs import LAST, journals, last
from orchestrator.errors import ConfigurationError, ResumeError

if TYPE_CHECKING:
    from orchestrator.policy import Policy
    from orchestrator.trajectory.journal import Record


@dataclass(frozen=True, slots=True)
class Past:
    """What a session's journals say of what it takes to go on with it.

    Attributes:
        id: of the session.
        path: the journal of its last question.
        policy: of that question, with what was set for those to come.
        model: spec of the root model, as it was given; empty where it was not.
        sub_model: that of the sub-calls, likewise.
        contexts: kind and hash of each context of the session.
        origins: files and ``unpack`` of each context that came from files, with the question it came with.
    """

    id: str
    path: Path
    policy: Policy
    model: str
    sub_model: str
    contexts: frozenset[tuple[str, str]]
    origins: tuple[tuple[int, tuple[str, ...], bool], ...]

    @classmethod
    def of(cls, path: Path, settings: Sequence[str]) -> Past:
        """Read the beginnings of a session's journals.

        Args:
            path: of any of them.
            settings: ``table.key=value`` assignments to the policy.

        Raises:
            JournalError: one cannot be read.
            ResumeError: they are no session's, or redacted.
            PolicyError: a setting is wrong.
        """
        from orchestrator.rlm.resume import not_redacted, recorded_policy
        from orchestrator.trajectory.tape import Tape

        identity = session_of(path)
        if not identity:
            raise ResumeError(f"{path} is a run of its own and of no session: {PROG} journal resume goes on with it")
        begun = list(_beginnings(path.parent, identity))
        if not begun:
            raise ConfigurationError(f"the journal of the first question is missing: {path.parent / identity}-1.jsonl")
        for place, first in begun:
            not_redacted(Tape(place, started=first.fields))
        place, last = begun[-1]
        origin = last.fields.get("origin") or {}
        policy = recorded_policy(Tape(place, started=last.fields), settings)
        origins = tuple(_origins(first for _, first in begun))
        contexts = frozenset((facts["kind"], facts["sha256"]) for facts in last.fields["session"]["contexts"])
        models = origin.get("model") or "", origin.get("sub_model") or ""
        return cls(identity, place, policy, *models, contexts, origins)


def session_of(path: Path) -> str:
    """Return the session that a journal is of a question of; empty for a run of its own.

    Raises:
        JournalError: it cannot be read.
    """
    from orchestrator.trajectory import following

    first = _first(path)
    return "" if first is None else following.session_of(first.fields)


def find(name: str, directory: Path) -> Path:
    """Return a journal of the session that ``name`` means: a path, a session's id, its beginning, or ``last``.

    Raises:
        ConfigurationError: there is none, or more than one.
        JournalError: a journal cannot be read.
    """
    if not name:
        raise ConfigurationError("the session is empty: give a file, or a session's id or its beginning")
    if Path(name).is_file():
        return Path(name)
    if name == LAST:
        return last(path for path in journals(directory) if "." not in path.stem and session_of(path))
    found: dict[str, Path] = {}
    starting = [path for path in journals(directory) if path.stem.startswith(name)]
    for path in starting:
        if identity := session_of(path):
            found.setdefault(identity, path)
    found = {name: found[name]} if name in found else found
    if len(found) > 1:
        raise ConfigurationError(f"{len(found)} sessions in {directory} begin with {name!r}: give more of the id")
    if found:
        return next(iter(found.values()))
    if starting:
        raise ConfigurationError(
            f"{name!r} is a run of its own and of no session: {PROG} journal resume goes on with it"
        )
    raise ConfigurationError(
        f"no session {name!r}: it is neither a file nor a session in {directory} (see {PROG} journal list)"
    )


def _first(path: Path) -> Record | None:
    from orchestrator.trajectory.journal import read

    return next(read(path), None)


def _beginnings(folder: Path, identity: str) -> Iterator[tuple[Path, Record]]:
    number = 1
    while (path := folder / f"{identity}-{number}.jsonl").exists():
        first = _first(path)
        number += 1
        if first is not None and first.kind == "run_started":  # else it was cut off before it began, or is damaged
            yield path, first


def _origins(firsts: Iterator[Record]) -> Iterator[tuple[int, tuple[str, ...], bool]]:
    known: set[tuple[tuple[str, ...], bool]] = set()
    for number, first in enumerate(firsts, start=1):
        origin: dict[str, Any] = first.fields.get("origin") or {}
        where = tuple(origin.get("files") or ()), bool(origin.get("unpack"))
        if where[0] and where not in known:
            known.add(where)
            yield number, *where
