"""A broker among fakes of what stands around it, and the calls a box would make to it."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from orchestrator.broker import Broker, ChildHandler
from orchestrator.ledger import Scope
from orchestrator.models import retry
from orchestrator.models.base import Model
from orchestrator.models.prices import PriceTable
from orchestrator.policy import Policy
from orchestrator.recording import Recorder
from orchestrator.tools import Toolbox
from orchestrator.traffic import Lane
from orchestrator.transport.rpc import RpcCall, RpcRefusal, RpcReply, encode_refusal
from tests.support.fakes import FakeClock, FakeModel, MemoryJournal

SECRETS = ("telling-name", "/home/", "sk-ant", "Traceback", "provider said")


class Bench:
    """A broker among fakes, and the calls a box would make to it."""

    def __init__(
        self,
        model: FakeModel | None = None,
        *,
        child: ChildHandler | None = None,
        open_named: Callable[[str], Model] | None = None,
        clock: FakeClock | None = None,
        prices: PriceTable | None = None,
        lane: Lane | None = None,
        cell_ends: Callable[[], float] = lambda: math.inf,
        tools: Toolbox | None = None,
        **settings: Any,
    ) -> None:
        assignments = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
        self.policy = Policy().override(assignments)
        self.model = model or FakeModel()
        self.journal = MemoryJournal()
        self.scope = Scope.root(self.policy.budget, clock) if clock else Scope.root(self.policy.budget)
        self.broker = Broker(
            scope=self.scope,
            policy=self.policy,
            sub_model=self.model,
            open_named=open_named or self.no_named_model,
            prices=prices or PriceTable.load(),
            recorder=Recorder("r", None, (self.journal,)),
            limiter=anyio.CapacityLimiter(self.policy.models.in_flight),
            child=child,
            complete=functools.partial(retry.complete, random=lambda: 0.0),
            lane=lane,
            cell_ends=cell_ends,
            tools=tools,
        )
        self._ids = itertools.count()

    @staticmethod
    def no_named_model(name: str) -> Model:
        raise AssertionError(f"nobody asked for {name}")

    async def call(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        body: str = "",
        *,
        cell: int | None = 1,
        call_id: str = "",
    ) -> RpcReply:
        return await self.broker(RpcCall(call_id or f"{next(self._ids):032x}", method, params or {}, body, cell))

    async def ask(self, prompt: str = "what?", **params: Any) -> RpcReply:
        return await self.call("llm_query", params, prompt)

    async def refusal(
        self, method: str, params: dict[str, Any] | None = None, body: str = "", **place: Any
    ) -> RpcRefusal:
        with pytest.raises(RpcRefusal) as caught:
            await self.call(method, params, body, **place)
        assert_tells_nothing(caught.value)
        return caught.value

    async def all_at_once(self, calls: list[Callable[[], Awaitable[RpcReply]]]) -> list[RpcReply | RpcRefusal]:
        outcomes: list[RpcReply | RpcRefusal] = []

        async def one(call: Callable[[], Awaitable[RpcReply]]) -> None:
            try:
                outcomes.append(await call())
            except RpcRefusal as refusal:
                outcomes.append(refusal)

        async with anyio.create_task_group() as tasks:
            for call in calls:
                tasks.start_soon(one, call)
        return outcomes

    @property
    def reserved(self) -> int:
        """Calls that are held and not spent."""
        spent = self.scope.usage()["calls"]
        return int(self.policy.budget.calls - self.scope.remaining()["calls"] - spent)


def assert_tells_nothing(refusal: RpcRefusal) -> None:
    told = encode_refusal("0" * 32, refusal).decode("utf-8", "replace")
    assert not [secret for secret in SECRETS if secret in told]


def priced(tmp_path: Path) -> PriceTable:
    table = tmp_path / "prices.toml"
    table.write_text('[models."fake-model-with-a-telling-name"]\ninput = 1\noutput = 10\n')
    return PriceTable.load(table)
