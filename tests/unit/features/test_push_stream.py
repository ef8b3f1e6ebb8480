"""A push stream hands on every batch that it acknowledges, however they come."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from interlock.features.v1 import feature_service_pb2 as pb

from services.features.domain.ports import Outcome
from services.features.domain.push import GivenRow
from services.features.servicer.feature_service import FeatureServicer

BATCHES = 50


class Taking:
    """Takes rows, and gives others their turn meanwhile."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    async def push(self, _writer: Any, given: Sequence[Sequence[GivenRow]]) -> list[list[Outcome]]:
        await asyncio.sleep(0)
        self.keys += [row.keys["carrier"] for batch in given for row in batch]
        return [[Outcome.WRITTEN] * len(batch) for batch in given]


class Anything:
    """A writer of any view, and metrics of it."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self


async def test_a_batch_that_arrives_while_others_are_taken_is_taken_too() -> None:
    async def requests() -> AsyncIterator[pb.PushFeaturesStreamRequest]:
        yield pb.PushFeaturesStreamRequest(open=pb.PushOpen(feature_view="featureViews/v"))
        for sequence in range(1, BATCHES + 1):
            row = pb.FeatureRow(entities={"carrier": f"c{sequence}"})
            yield pb.PushFeaturesStreamRequest(batch=pb.PushBatch(sequence=sequence, rows=[row]))

    taking, anything = Taking(), Anything()
    named: dict[str, Any] = dict.fromkeys(("plans", "reader", "writers", "answers", "metrics"), anything)
    servicer = FeatureServicer(**named, pusher=taking, draining=asyncio.Event(), clock_tolerance_s=60)  # type: ignore[arg-type]
    call: Any = anything
    acknowledged = [answer.acknowledged_sequence async for answer in servicer.PushFeaturesStream(requests(), call)]
    assert acknowledged[-1] == BATCHES
    assert taking.keys == [f"c{sequence}" for sequence in range(1, BATCHES + 1)]
