"""What a run may do, as frozen data.

A policy is a TOML file with four tables, ``[budget]``, ``[limits]``, ``[sandbox]`` and ``[models]``. Unknown keys are
errors, every value is checked, and :meth:`Policy.narrow` can only shrink: a child run never gets more than its parent.
``policies/README.md`` describes every key; a test compares it with the fields below.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator import bundle
from orchestrator.errors import PolicyError

Positive = Annotated[int, Field(ge=1, le=2**53)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Seconds = Annotated[float, Field(gt=0, le=30 * 86400, allow_inf_nan=False)]
Dollars = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Budget(_Table):
    """What a whole tree of runs may spend; one ledger on the host holds it.

    Attributes:
        calls: requests to model providers, root turns, sub-calls and retries together.
        depth: levels of child runs below the first; 0 turns every ``rlm_query`` into a plain sub-call.
        turns: root turns of one run.
        wall_s: seconds a run may last.
        tokens: input and output tokens, cached ones included.
        cost_usd: US dollars by the price table; calls to unpriced models are counted apart.
        children: child runs in the whole tree.
        children_alive: child runs of the tree at a time, each with a box of its own; further ones wait for a place.
        bytes_in: UTF-8 of all answers that go into the boxes.
        bytes_out: UTF-8 of all prompts, contexts of child runs and answers that come out of them.
        journal_mb: MiB of all journals together.
        tool_calls: calls of the host's tools in the whole tree.
    """

    calls: Positive = 2000
    depth: Count = 1
    turns: Positive = 30
    wall_s: Seconds = 1800.0
    tokens: Positive = 20_000_000
    cost_usd: Dollars = 10.0
    children: Count = 32
    children_alive: Count = 4
    bytes_in: Count = 4 * 2**30
    bytes_out: Count = 4 * 2**30
    journal_mb: Annotated[int, Field(ge=1, le=1 << 20)] = 256
    tool_calls: Count = 1000


class Limits(_Table):
    """What one box may use, and what one cell may do.

    Attributes:
        memory_mb: memory of the container, swap included (there is none).
        pids: processes and threads.
        cpus: processor cores, as a quota.
        tmp_mb: size of the writable scratch (``/tmp``), in memory.
        tmp_inodes: files in it.
        open_files: descriptors of a process.
        output_kb: output of one cell that leaves the box, a stream; more is cut in the middle, at the source.
        cell_timeout_s: seconds a cell may run.
        call_timeout_s: seconds one sub-call may take, its retries included.
        start_timeout_s: seconds a box may take to become ready.
        frame_kb: largest single frame, and so the largest prompt of one sub-call.
        context_mb: largest context, as UTF-8.
        answer_mb: largest final answer, as UTF-8.
        observation_chars: characters of one turn's output that the root model is shown.
    """

    memory_mb: Annotated[int, Field(ge=128, le=1 << 20)] = 2048
    pids: Annotated[int, Field(ge=24, le=4096)] = 96
    cpus: Annotated[float, Field(gt=0, le=256, allow_inf_nan=False)] = 1.0
    tmp_mb: Annotated[int, Field(ge=8, le=1 << 16)] = 64
    tmp_inodes: Annotated[int, Field(ge=64, le=1 << 20)] = 4096
    open_files: Annotated[int, Field(ge=128, le=65536)] = 512
    output_kb: Annotated[int, Field(ge=4, le=1 << 16)] = 256
    cell_timeout_s: Seconds = 300.0
    call_timeout_s: Seconds = 300.0
    start_timeout_s: Seconds = 60.0
    frame_kb: Annotated[int, Field(ge=64, le=1 << 16)] = 8192
    context_mb: Annotated[int, Field(ge=1, le=1 << 16)] = 512
    answer_mb: Annotated[int, Field(ge=1, le=4096)] = 8
    observation_chars: Annotated[int, Field(ge=500, le=1_000_000)] = 12_000


class SandboxSettings(_Table):
    """How the box is made.

    Attributes:
        runtime: OCI runtime the engine is asked for: ``runc``, ``runsc``, or another it knows; empty for its default.
        image: image id or reference to use; empty for the one built from these sources.
        user: numeric ``uid:gid`` the box runs as; never 0. The uid is the first of those boxes have.
        uids: how many uids boxes are spread over, in turn; Linux counts some things by user, for all its boxes.
        user_namespace: whether a box that is in no user namespace is refused; the engine makes them, not we.
        freeze_between_cells: whether everything in the box but its supervisor is stopped while no cell is open.
        allow_subprocess: whether a cell may start programs and fork; threads it may always.
    """

    runtime: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{0,64}$")] = ""
    image: Annotated[str, Field(max_length=255)] = ""
    user: Annotated[str, Field(pattern=r"^[1-9][0-9]{2,8}:[1-9][0-9]{2,8}$")] = "64000:64000"
    uids: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    user_namespace: bool = False
    freeze_between_cells: bool = False
    allow_subprocess: bool = True


class ModelSettings(_Table):
    """Which models, and how hard they are driven.

    Attributes:
        root: spec of the root model (``provider:name``); empty lets the caller or the environment choose.
        sub: spec of the sub-call model; empty means the same as the root.
        allowed: names a cell may ask for with ``llm_query(model=…)``, besides the default.
        max_tokens: most output tokens of one reply.
        in_flight: sub-calls of one tree of runs that may be at a provider at once.
        provider_in_flight: requests, of all runs of this process, that may be at one provider at once.
        requests_per_minute: requests to one provider in any minute, of all runs of this process; 0 for any number.
        tokens_per_minute: tokens of one provider in any minute, likewise.
        history_tokens: from which on the root model's history is replaced by a summary of its own; 0 turns that off.
        direct_below_chars: a context shorter than this is answered by one plain call; 0 turns that off.
        request_timeout_s: seconds within which a reply has come whole; a later one is given up, and asked for again.
        memo: answer a sub-call that repeats an earlier one of its run, word for word, with that one's answer, for free.
        price_caps: the most that one sub-call to a model may cost, in US dollars, by the model's name.
    """

    root: Annotated[str, Field(max_length=200)] = ""
    sub: Annotated[str, Field(max_length=200)] = ""
    allowed: tuple[str, ...] = ()
    max_tokens: Annotated[int, Field(ge=16, le=1_000_000)] = 8192
    in_flight: Annotated[int, Field(ge=1, le=1024)] = 16
    provider_in_flight: Annotated[int, Field(ge=1, le=65536)] = 128
    requests_per_minute: Count = 0
    tokens_per_minute: Count = 0
    history_tokens: Count = 150_000
    direct_below_chars: Count = 0
    request_timeout_s: Seconds = 600.0
    memo: bool = False
    price_caps: dict[str, Dollars] = Field(default_factory=dict)

    @property
    def window(self) -> int:
        """Calls of one box that may be under way at once: enough to keep ``in_flight`` busy while answers travel."""
        return 2 * self.in_flight


class Policy(_Table):
    """Everything a run may do; frozen, and only ever narrowed."""

    name: Annotated[str, Field(max_length=64)] = "default"
    budget: Budget = Budget()
    limits: Limits = Limits()
    sandbox: SandboxSettings = SandboxSettings()
    models: ModelSettings = ModelSettings()

    @classmethod
    def load(cls, name_or_path: str | Path = "default") -> Policy:
        """Read a shipped profile by name, or a TOML file by path.

        Raises:
            PolicyError: no such profile or file, or a key or value in it is wrong; the message names it.
        """
        path = _find(str(name_or_path))
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise PolicyError(f"cannot read policy {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise PolicyError(f"cannot read policy {path}: it is not UTF-8 text") from error
        except tomllib.TOMLDecodeError as error:
            raise PolicyError(f"policy {path} is not valid TOML: {error}") from error
        return cls.from_data({"name": path.stem, **data}, source=str(path))

    @classmethod
    def from_data(cls, data: dict[str, Any], *, source: str = "policy") -> Policy:
        """Validate plain data.

        Raises:
            PolicyError: with one of its ``problems`` for each, naming key and remedy.
        """
        try:
            return cls.model_validate(_arrays_to_tuples(data))
        except ValidationError as error:
            problems = [_explain(problem) for problem in error.errors()]
            raise PolicyError(
                f"{source}: " + "; ".join(problems), [f"{source}: {line}" for line in problems]
            ) from error

    def override(self, assignments: list[str]) -> Policy:
        """Return this policy with ``table.key=value`` assignments applied; values are TOML, bare words are strings.

        Raises:
            PolicyError: an assignment is malformed, or names an unknown key, or its value does not fit.
        """
        data = self.model_dump()
        for assignment in assignments:
            key, separator, text = assignment.partition("=")
            table, dot, name = key.strip().partition(".")
            if not separator or not dot or not name:
                raise PolicyError(f"--set {assignment!r}: write table.key=value, for example budget.calls=100")
            if not isinstance(data.get(table), dict):
                raise PolicyError(f"--set {assignment!r}: no table {table!r}; there are {_join(_tables())}")
            data[table][name] = _parse_value(text.strip(), data[table].get(name))
        return Policy.from_data(data, source="--set")

    def narrow(self, other: Policy) -> Policy:
        """Return the policy that allows only what both allow: the smaller of each number, the strictest of each choice.

        The box itself (runtime, image, user) stays this policy's: a child cannot choose a weaker one.
        """
        mine, its = self.model_dump(), other.model_dump()
        for table in ("budget", "limits"):
            mine[table] = {key: min(value, its[table][key]) for key, value in mine[table].items()}
        for key in ("max_tokens", "in_flight", "provider_in_flight"):
            mine["models"][key] = min(mine["models"][key], its["models"][key])
        for key in ("requests_per_minute", "tokens_per_minute"):  # 0 is no limit
            mine["models"][key] = min(filter(None, (mine["models"][key], its["models"][key])), default=0)
        box, its_box = mine["sandbox"], its["sandbox"]
        box["freeze_between_cells"] = box["freeze_between_cells"] or its_box["freeze_between_cells"]
        box["allow_subprocess"] = box["allow_subprocess"] and its_box["allow_subprocess"]
        caps = (self.models.price_caps, its["models"]["price_caps"])
        mine["models"]["price_caps"] = {name: min(c[name] for c in caps if name in c) for c in caps for name in c}
        mine["models"]["request_timeout_s"] = min(self.models.request_timeout_s, other.models.request_timeout_s)
        mine["models"]["allowed"] = tuple(name for name in self.models.allowed if name in other.models.allowed)
        return Policy.model_validate(mine)


def profiles() -> list[str]:
    """Names of the shipped profiles."""
    return sorted(path.stem for path in bundle.path("policies").glob("*.toml"))


def _find(name: str) -> Path:
    shipped = bundle.path("policies") / f"{name}.toml"
    if name.replace("-", "").replace("_", "").isalnum() and shipped.is_file():
        return shipped
    path = Path(name)
    if path.is_file():
        return path
    raise PolicyError(f"no policy {name!r}: give a TOML file or one of {_join(profiles())}")


def _tables() -> list[str]:
    return [name for name, field in Policy.model_fields.items() if field.annotation is not str]


def _arrays_to_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _arrays_to_tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _parse_value(text: str, current: Any) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    if isinstance(current, float) and type(value) is int:
        return float(value)
    return str(text) if isinstance(current, str) and not isinstance(value, str) else value


def _explain(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        table: Any = Policy
        for part in problem["loc"][:-1]:
            table = table.model_fields[part].annotation
        return f"unknown key {where!r}; known here: {_join(sorted(table.model_fields))}"
    remedy = _REMEDIES.get((where, problem["type"])) or problem["msg"][0].lower() + problem["msg"][1:]
    return f"{where} = {problem['input']!r}: {remedy}"


# Where pydantic's own words would be a regular expression or a type of Python.
_REMEDIES = {
    ("sandbox.user", "string_pattern_mismatch"): "give numeric uid:gid, each of at least 100, such as 64000:64000",
    ("sandbox.runtime", "string_pattern_mismatch"): "give a name of at most 64 letters, digits, dots and dashes",
    ("models.allowed", "tuple_type"): 'give a list such as ["anthropic:NAME"]',
}


def _join(names: list[str]) -> str:
    return ", ".join(names)
