"""Reads of features that share a message: what happens to one of them is its own affair."""

import asyncio
from typing import Any

import pytest
from interlock.features.v1 import feature_service_pb2 as pb
from interlock.types.v1.feature_value_pb2 import FeatureValue
from prometheus_client import CollectorRegistry

from services.common.arrivals import no_arrivals
from services.common.call import Call
from services.common.door_turns import Turns
from services.common.tracing import Tracing
from services.router.adapters.features_client.reader import FeatureReads
from services.router.adapters.metrics import FetchMetrics
from services.router.domain.enrichment import FeatureAsk, FetchedRow

SOURCES = ("view.feature",)


class Stub:
    """Answers when a test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[pb.ReadFeaturesRequest, asyncio.Future[pb.ReadFeaturesResponse]]] = []

    def ReadFeatures(self, request: pb.ReadFeaturesRequest, **_: Any) -> "asyncio.Future[pb.ReadFeaturesResponse]":
        self.asked.append((request, asyncio.get_running_loop().create_future()))
        return self.asked[-1][1]

    def answer(self) -> None:
        """Answer the last message: each row's value is the number that is its key."""
        request, answer = self.asked[-1]
        count = len(request.rows)
        values = [FeatureValue(double_value=float(row.entities["e"])) for row in request.rows]
        present = [pb.VALUE_STATUS_PRESENT] * count
        column = pb.FeatureColumn(
            feature=SOURCES[0], values=values, statuses=present, ages_ms=[1] * count, event_times_us=[1] * count
        )
        answer.set_result(pb.ReadFeaturesResponse(columns=[column]))


@pytest.fixture
def stub() -> Stub:
    return Stub()


def reads_of(stub: Any) -> FeatureReads:
    return FeatureReads(
        stub,
        timeout_s=20.0,
        gather_s=0.002,
        arriving=no_arrivals,
        turns=Turns(),
        tracing=Tracing("test"),
        metrics=FetchMetrics(CollectorRegistry()),
    )


async def test_who_is_cancelled_while_the_answer_comes_takes_it_from_nobody(stub: Stub) -> None:
    reads = reads_of(stub)
    asked = [asyncio.ensure_future(reads.read(SOURCES, [FeatureAsk({"e": str(n)}, {})], Call("m"))) for n in range(3)]
    while not stub.asked:
        await asyncio.sleep(0)
    assert len(stub.asked[0][0].rows) == 3
    stub.answer()
    # The read wakes up first, and finds a call that has been cancelled and does not know yet.
    asked[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked[1]
    found = [row for one in (asked[0], asked[2]) for row in await one]
    assert [row.values for row in found if isinstance(row, FetchedRow)] == [(0.0,), (2.0,)]
