"""An OTLP receiver inside the tests: what the services report, by trace."""

import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc


@dataclass(frozen=True)
class Reported:
    """One span: which service reported it, its name, its id and its parent's."""

    service: str
    name: str
    span_id: str
    parent_id: str


class Receiver(rpc.TraceServiceServicer):
    """Keeps every span that arrives."""

    def __init__(self) -> None:
        self.endpoint = ""
        self._arrived = threading.Condition()
        self._spans: defaultdict[str, list[Reported]] = defaultdict(list)

    def Export(
        self, request: pb.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> pb.ExportTraceServiceResponse:
        with self._arrived:
            for group in request.resource_spans:
                service = next(a.value.string_value for a in group.resource.attributes if a.key == "service.name")
                for span in (span for scope in group.scope_spans for span in scope.spans):
                    reported = Reported(service, span.name, span.span_id.hex(), span.parent_span_id.hex())
                    self._spans[span.trace_id.hex()].append(reported)
            self._arrived.notify_all()
        return pb.ExportTraceServiceResponse()

    def wait_for(self, trace_id: str, caller: str, services: set[str], timeout_s: float = 20.0) -> list[Reported]:
        """Return the spans of a trace once each of `services` has reported one, and all parents up to the caller's span."""

        def is_whole() -> bool:
            found = self._spans[trace_id]
            known = {caller, *(span.span_id for span in found)}
            return services <= {span.service for span in found} and all(span.parent_id in known for span in found)

        with self._arrived:
            self._arrived.wait_for(is_whole, timeout_s)
            return list(self._spans[trace_id])


@contextmanager
def receive_spans() -> Iterator[Receiver]:
    """Listen on a free port while the block runs."""
    receiver = Receiver()
    server = grpc.server(ThreadPoolExecutor(4))
    # OpenTelemetry's stubs carry no types.
    rpc.add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    receiver.endpoint = f"http://127.0.0.1:{port}"
    server.start()
    try:
        yield receiver
    finally:
        server.stop(0).wait()
