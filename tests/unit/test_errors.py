"""The tree of exceptions, and how one leaves a task group alone."""

from __future__ import annotations

import inspect
import re

import anyio
import pytest

from orchestrator import errors
from orchestrator.errors import (
    HardeningError,
    LimitExceededError,
    ModelUnavailableError,
    PolicyError,
    RlmSandboxError,
    SandboxGoneError,
    ungrouped,
)

CLASSES = [member for _, member in inspect.getmembers(errors, inspect.isclass) if issubclass(member, RlmSandboxError)]


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    drawn, path = [], list[str]()
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"    ([│ ]*)(?:[├└]── )?(\w+Error)\b", line):
            depth = len(found[1]) // 4 + ("──" in line)
            path = [*path[:depth], found[2]]
            drawn.append(tuple(path))
    real = [tuple(base.__name__ for base in reversed(member.__mro__) if base in CLASSES) for member in CLASSES]
    assert sorted(drawn) == sorted(real)


def test_the_exit_codes_in_the_docstring_are_those_of_the_classes() -> None:
    for name, code in re.findall(r"(\w+Error)\b.*exit (\d)", errors.__doc__ or ""):
        assert getattr(errors, name).exit_code == int(code)


def test_errors_with_facts_name_them() -> None:
    assert str(LimitExceededError("calls", 3)) == "the budget for calls is used up (3 left)"
    assert str(LimitExceededError("wall_s", 0.5, "late")) == "late"
    hardening = HardeningError(["H1 no network (seen from engine)", "H6 not root (seen from inside)"])
    assert hardening.controls == ["H1 no network (seen from engine)", "H6 not root (seen from inside)"]
    assert "H1 no network" in str(hardening)
    assert "H6 not root" in str(hardening)
    assert ModelUnavailableError("busy", retry_after_s=2.5).retry_after_s == 2.5


def raise_from_a_history(error: Exception, *, as_cause: bool) -> None:
    try:
        int("before")
    except ValueError as before:
        if as_cause:
            raise error from before
        raise error  # noqa: B904 - its history is the point


class TestUngrouped:
    @pytest.mark.anyio
    async def test_an_exception_leaves_a_task_group_as_itself(self) -> None:
        error = PolicyError("no")

        async def fail() -> None:
            with ungrouped():
                async with anyio.create_task_group(), anyio.create_task_group():
                    raise error

        with pytest.raises(PolicyError) as caught:
            await fail()
        assert caught.value is error

    @pytest.mark.anyio
    @pytest.mark.parametrize("as_cause", [True, False], ids=["raised from", "raised while handling"])
    async def test_its_history_is_the_one_its_author_gave_it(self, as_cause: bool) -> None:  # noqa: FBT001
        async def fail() -> None:
            with ungrouped():
                async with anyio.create_task_group():
                    raise_from_a_history(SandboxGoneError("gone"), as_cause=as_cause)

        with pytest.raises(SandboxGoneError) as caught:
            await fail()
        assert isinstance(caught.value.__context__, ValueError)
        assert caught.value.__cause__ is (caught.value.__context__ if as_cause else None)
        assert caught.value.__suppress_context__ is as_cause

    @pytest.mark.anyio
    async def test_a_group_of_the_callers_own_leaves_whole(self) -> None:
        own = ExceptionGroup("mine", [ValueError("a"), KeyError("b")])

        async def fail() -> None:
            with ungrouped() as whole:
                async with anyio.create_task_group():
                    whole.append(own)
                    raise own

        with pytest.raises(ExceptionGroup) as caught:
            await fail()
        assert caught.value is own

    def test_what_is_no_group_passes_untouched(self) -> None:
        with pytest.raises(KeyboardInterrupt), ungrouped():
            raise KeyboardInterrupt
        with ungrouped():
            pass
