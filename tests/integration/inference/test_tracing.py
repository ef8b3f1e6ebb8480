"""One trace id from the caller's span down to the run of the model."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from interlock.inference.v1 import inference_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_rpc

from tests.fakes.inference_registry import FakeRegistry
from tests.integration.inference.stream import open_stream, row

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


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
