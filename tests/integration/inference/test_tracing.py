"""One trace id from the caller's span down to the run of the model; what is told of each batch, there and in metrics."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from interlock.inference.v1 import inference_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_rpc

from services.inference.domain.batching import Reason
from tests.fakes.inference_registry import FakeRegistry
from tests.integration.inference.stream import open_stream, row

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
COUNTS = ("batch_rows_count", "batch_rows_sum", "queue_seconds_count", "compute_seconds_count")


class Collector(otlp_rpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.spans: list[Any] = []

    async def Export(self, request: Any, context: Any) -> Any:
        self.spans += [span for each in request.resource_spans for scope in each.scope_spans for span in scope.spans]
        return otlp.ExportTraceServiceResponse()


async def listening(collector: Collector) -> AsyncIterator[int]:
    server = grpc.aio.server()
    add: Any = otlp_rpc.add_TraceServiceServicer_to_server
    add(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def test_a_traced_item_has_a_span_with_its_queue_and_its_computation(
    start: Callable[..., Any], registry: FakeRegistry, put_oracle: Callable[..., None]
) -> None:
    put_oracle()
    collector = Collector()
    async for port in listening(collector):
        async with registry.listening() as address, start(address, otlp_endpoint=f"http://127.0.0.1:{port}") as running:
            await running.ready("oracle/1")
            async with open_stream(running.own, "oracle", "1") as stream:
                batch, ids = stream.put([row(1), row(2)])
                batch.traceparents.extend([f"00-{TRACE}-{PARENT}-01", ""])
                futures = [stream.waiting[ident] for ident in ids]
                await stream.call.write(pb.CoalescedInferRequest(batch=batch))
                await asyncio.gather(*futures)
                await stream.infer(*(row(value) for value in range(8)))  # as many as a batch holds
            sample = running.serving.runtime.registry.get_sample_value
            labels = {"model": "oracle", "version": "1"}
            causes = {name: sample("interlock_inference_batches_total", labels | {"cause": name}) for name in Reason}
            counts = {name: sample(f"interlock_inference_{name}", labels) for name in COUNTS}
            async with asyncio.timeout(10):
                while not {"inference.item", "inference.queue", "inference.compute"} <= {
                    s.name for s in collector.spans
                }:
                    await asyncio.sleep(0.05)
    ours = {span.name: span for span in collector.spans if span.name.startswith("inference.")}
    assert {span.trace_id.hex() for span in ours.values()} == {TRACE}
    item = ours["inference.item"]
    assert item.parent_span_id.hex() == PARENT
    assert ours["inference.queue"].parent_span_id == ours["inference.compute"].parent_span_id == item.span_id
    assert ours["inference.queue"].end_time_unix_nano <= ours["inference.compute"].end_time_unix_nano
    attributes = {each.key: each.value.string_value for each in item.attributes}
    assert attributes == {"interlock.model": "oracle", "interlock.version": "1"}
    batch_of = {each.key: each.value for each in ours["inference.compute"].attributes}
    assert batch_of["interlock.batch_size"].int_value == 2
    assert batch_of["interlock.batch_reason"].string_value == "share"
    assert {name: count for name, count in causes.items() if count} == {"share": 1, "full": 1}
    assert counts == {
        "batch_rows_count": 2,
        "batch_rows_sum": 10,
        "queue_seconds_count": 10,
        "compute_seconds_count": 2,
    }
