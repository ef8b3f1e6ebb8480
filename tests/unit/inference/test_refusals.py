"""What an overloaded version tells the requests of one message, and what a refusal keeps."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from interlock.inference.v1 import inference_service_pb2 as pb
from interlock.types.v1 import tensor_pb2 as types_pb

from services.common.errors import status_reason
from services.common.tracing import Tracing
from services.inference.adapters.telemetry import SpanTracer
from services.inference.domain.admission import QueueLimits
from services.inference.domain.failure import VersionNotReady
from services.inference.domain.model_host import ModelHost
from services.inference.domain.replica import Replica
from services.inference.domain.version import BatchingPolicy, LoadState, VersionSpec
from services.inference.servicer import coalesced_stream
from services.inference.servicer.coalesced_stream import CoalescedStream
from tests.fakes.inference_runner import ANSWER, SPEC, FakeClock, FakeObserver, FakeRunner, Rig

KEY = Rig().dispatcher.key
BATCH_S = 100.0
CRITICAL, DEFAULT = pb.CRITICALITY_CRITICAL, pb.CRITICALITY_DEFAULT


class Stand:
    """A stream of a version that runs one row at a time, a hundred seconds each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock, self.observer = FakeClock(), FakeObserver()
        # Deadlines by the same clock: what is left is told to 10 ms, and a busy machine takes longer than that here.
        monkeypatch.setattr(coalesced_stream, "time", SimpleNamespace(monotonic=lambda: clock.time))
        parts: Any = SimpleNamespace(
            clock=clock, observer=self.observer, limits=QueueLimits(), arriving=lambda: 0, loads=None
        )
        replica = Replica("replica", "default", parts, lambda *_: None)
        spec = VersionSpec(KEY, (), (SPEC,), (ANSWER,))
        host = replica.hosts[KEY] = ModelHost(spec, BatchingPolicy(1, 0.002), parts, lambda _: None)
        host.state = LoadState.READY
        self.dispatcher = host.dispatcher
        self.dispatcher.attach(FakeRunner(self.dispatcher), [(1, BATCH_S)])
        opening = pb.CoalescedInferRequest(open=pb.InferOpen(model=KEY.model, version=KEY.version))
        self.stream = CoalescedStream(
            opening, replica, SpanTracer(Tracing("test")), limit_bytes=1 << 20, on_change=lambda: None
        )
        self.stream.outbox.clear()

    def send(self, *requests: tuple[int, float, "pb.Criticality.ValueType", int]) -> Sequence[pb.InferFailure]:
        """Send (id, seconds, criticality, rows) in one message; gives what was refused."""
        batch = pb.InferBatch()
        for ident, seconds, criticality, rows in requests:
            batch.ids.append(ident)
            batch.timeouts_us.append(int(seconds * 1e6))
            batch.criticalities.append(criticality)
            batch.rows.append(rows)
        total = sum(batch.rows)
        batch.tensors.add(name="x", data_type=types_pb.DATA_TYPE_UINT8, shape=[total, 1], data=bytes(total))
        self.stream.take(pb.CoalescedInferRequest(batch=batch))
        return [failure for message in self.stream.outbox for failure in message.results.failures]


async def test_requests_that_are_alike_are_refused_alike_and_each_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(monkeypatch)
    assert not stand.send(*((ident, 4000.0, CRITICAL, 1) for ident in (1, 2)))  # one runs, one waits
    before = stand.dispatcher.in_flight
    refused = stand.send(
        (11, 50.0, DEFAULT, 1),
        (12, 50.5, DEFAULT, 1),
        (13, 50.0, CRITICAL, 1),
        (14, 4000.0, DEFAULT, 1),  # has the time
        (15, 49.5, DEFAULT, 1),
        (16, 4000.0, CRITICAL, 1),
        (17, 20.0, DEFAULT, 1),  # is told of its own deadline
    )
    assert [(failure.id, *failure.further_ids) for failure in refused] == [(11, 12, 15), (13,), (17,)]
    assert {status_reason(failure.error) for failure in refused} == {"QUEUE_FULL"}
    told = [failure.error.message for failure in refused]
    assert "about 50000 ms are left" in told[0]
    assert "about 20000 ms are left" in told[2]
    assert stand.dispatcher.in_flight == before + 2
    assert stand.dispatcher.queue.waiting == 3
    assert stand.dispatcher.statistic.fail.count == 5
    assert stand.observer.done == ["QUEUE_FULL"] * 5
    stand.stream.abandon()
    assert stand.dispatcher.in_flight == 0


async def test_a_refusal_that_many_hear_keeps_nothing_of_them() -> None:
    rig = Rig()
    refusal = VersionNotReady(KEY, "LOADING", "")
    rig.dispatcher.detach(rig.runner, "is gone", refusal)
    lengths = set()
    for value in range(4):
        with pytest.raises(VersionNotReady) as told:
            rig.send(*rig.values(value))
        lengths.add(len(told.traceback))
    assert len(lengths) == 1
