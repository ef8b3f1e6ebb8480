"""A router or an inference whose rule of gathering can be exchanged while it runs: for `gather_rules` alone.

    python -m benchmarks.other_rules router|inference        BENCHMARK_RULES names a file of two bytes, one for each service

The product knows one rule, the share rule; the others live here. Each look at what waits reads which one is in force.
"""

import importlib
import mmap
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from math import inf
from pathlib import Path
from typing import Any, ClassVar

from services.common.edge.launcher import launch
from services.common.server import main
from services.inference import app as inference_app
from services.inference.domain import dispatch, model_host
from services.inference.domain.batching import Batch, BatchQueue, Reason
from services.inference.domain.dispatch import Dispatcher
from services.router import app as router_app
from services.router.adapters.inference_client import message, stream
from services.router.adapters.inference_client.message import Item
from services.router.domain.gathering import Gathering
from services.router.settings import Settings as RouterSettings

FILE = "BENCHMARK_RULES"
ROUTER, INFERENCE = 0, 1
"""Which byte is whose."""
DOORS = {"router_door": "services.router.door", "inference_door": "services.inference.door"}


class Rule(IntEnum):
    """What decides when requests leave together."""

    SHARE = 0
    """The product's."""
    IDLE = 1
    """Leave when nothing is at the model (inference), or on its way to inference (router)."""
    OFF = 2
    """No batches: each request leaves alone and at once."""
    WINDOW_1_MS = 3
    WINDOW_5_MS = 4
    WINDOW_10_MS = 5


WINDOWS_S = {Rule.WINDOW_1_MS: 0.001, Rule.WINDOW_5_MS: 0.005, Rule.WINDOW_10_MS: 0.010}


def open_rules(path: str) -> mmap.mmap:
    """Return the two bytes of a file, shared with whoever else has it open."""
    with Path(path).open("r+b") as file:
        return mmap.mmap(file.fileno(), 2)


_rules: Any = open_rules(os.environ[FILE]) if FILE in os.environ else bytes(2)


class OtherGathering(Gathering[Item]):
    """The router's gatherer, by the rule in force."""

    __slots__ = ()
    _WAITS_S: ClassVar = {
        Rule.SHARE: RouterSettings.model_fields["gather_s"].default,
        Rule.IDLE: 10.0,
        Rule.OFF: 0.0,
    } | WINDOWS_S

    def add(self, request: Item) -> None:
        self._max_wait_s = self._WAITS_S[_rules[ROUTER]]
        super().add(request)

    def is_due(self) -> bool:
        rule = _rules[ROUTER]
        if rule == Rule.SHARE:
            return super().is_due()
        if rule == Rule.IDLE:
            return bool(self.waiting) and self.in_flight == len(self.waiting)
        return bool(self.waiting) and self._clock() >= self._leave_at


def batches(items: Sequence[Item], limit_bytes: int) -> Iterator[list[Item]]:
    """Part what leaves into messages."""
    return iter([[item] for item in items]) if _rules[ROUTER] == Rule.OFF else message.batches(items, limit_bytes)


class OtherQueue(BatchQueue):
    """Inference's batcher, by the rule in force."""

    running: Mapping[int, object] = {}

    def next_batch(self, now: float, in_flight: int, batch_s: float) -> Batch | None:
        self._follow_rule()
        return super().next_batch(now, in_flight, batch_s)

    def wake_at(self, batch_s: float) -> float:
        self._follow_rule()
        return super().wake_at(batch_s)

    def _follow_rule(self) -> None:
        rule = _rules[INFERENCE]
        self.max_rows = 1 if rule == Rule.OFF else self.policy.max_batch_size
        self.max_delay_s = inf if rule == Rule.IDLE else WINDOWS_S.get(rule, self.policy.max_delay_s)

    def _due(self, lane: Any, now: float, in_flight: int, batch_s: float) -> Reason | None:
        rule = _rules[INFERENCE]
        # The share rule looks at the calls in flight: with so many it never finds half of them here.
        reason = super()._due(lane, now, in_flight if rule == Rule.SHARE else 1 << 60, batch_s)
        return Reason.SHARE if reason is None and rule == Rule.IDLE and not self.running else reason


class OtherDispatcher(Dispatcher):
    """Tells its queue what runs."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        assert isinstance(self.queue, OtherQueue)
        self.queue.running = self._running


stream.Gathering = OtherGathering  # type: ignore[attr-defined,misc]
stream.batches = batches  # type: ignore[attr-defined]
dispatch.BatchQueue = OtherQueue  # type: ignore[attr-defined,misc]
model_host.Dispatcher = OtherDispatcher  # type: ignore[attr-defined,misc]


def __getattr__(name: str) -> Any:
    """Give the application that Envoy asks for; nothing of the other service is set up."""
    if name not in DOORS:
        raise AttributeError(name)
    return importlib.import_module(DOORS[name]).app


if __name__ == "__main__":
    door = f"benchmarks.other_rules:{sys.argv[1]}_door"
    if sys.argv[1] == "router":
        main("router", RouterSettings, router_app.build, lambda its: launch("router", its, door, hot=router_app.HOT))
    else:
        kind, hot = inference_app.Settings, inference_app.HOT
        main("inference", kind, inference_app.build, lambda its: launch("inference", its, door, hot=hot))
