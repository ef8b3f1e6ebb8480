"""OpenTelemetry spans, explicit and only where we start them; W3C trace context in and out.

With no OTLP endpoint nothing is created: the caller's `traceparent` is passed on as it came.
"""

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_PROPAGATOR: Final = TraceContextTextMapPropagator()
_EXPORT_TIMEOUT_S: Final = 2.0
_SCHEDULE_DELAY_MS: Final = 500


@dataclass(slots=True)
class OpenSpan:
    """A span under way and the trace context that hops below it carry; both empty while tracing is off."""

    span: Span | None
    traceparent: str

    def end(self, error: str = "", attributes: Mapping[str, str] | None = None) -> None:
        """Finish the span; `error` is a status or reason, empty for success."""
        if self.span is None:
            return
        if attributes:
            self.span.set_attributes(dict(attributes))
        if error:
            self.span.set_status(Status(StatusCode.ERROR, error))
        self.span.end()


class Tracing:
    """Starts spans of one service and sends them to an OTLP endpoint, or does neither when there is none."""

    def __init__(self, service: str, endpoint: str = "", sample_ratio: float = 1.0) -> None:
        self._provider = _provider(service, endpoint, sample_ratio) if endpoint else None
        self._tracer = self._provider.get_tracer("interlock") if self._provider else None

    @property
    def enabled(self) -> bool:
        """Whether spans are recorded at all."""
        return self._tracer is not None

    def begin(self, name: str, traceparent: str = "", *, server: bool = False) -> OpenSpan:
        """Start a span below `traceparent`, or a new trace when that is empty or malformed."""
        if self._tracer is None:
            return OpenSpan(None, traceparent)
        parent = _PROPAGATOR.extract({"traceparent": traceparent})
        kind = SpanKind.SERVER if server else SpanKind.INTERNAL
        span = self._tracer.start_span(name, context=parent, kind=kind)
        return OpenSpan(span, _traceparent(span))

    @contextmanager
    def span(self, name: str, traceparent: str = "") -> Iterator[OpenSpan]:
        """Time a block as a span below `traceparent`; an exception marks it failed and goes on."""
        opened = self.begin(name, traceparent)
        try:
            yield opened
        except BaseException as error:
            opened.end(type(error).__name__)
            raise
        opened.end()

    async def close(self, timeout_s: float = 2.0) -> None:
        """Send what is left and stop; gives up after `timeout_s`, for a missing collector must not hold an exit."""
        if self._provider is None:
            return
        provider, self._provider, self._tracer = self._provider, None, None
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            provider.shutdown()
            # The loop may be gone when the collector took longer than anyone waited.
            if not loop.is_closed():
                loop.call_soon_threadsafe(done.set)

        # A daemon, unlike an executor's thread, does not hold the interpreter back.
        threading.Thread(target=shut_down, name="otlp-flush", daemon=True).start()
        try:
            async with asyncio.timeout(timeout_s):
                await done.wait()
        except TimeoutError:
            return


def _provider(service: str, endpoint: str, sample_ratio: float) -> "TracerProvider":
    # A sixth of a second of processor time, and most processes send no spans.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio  # noqa: PLC0415

    resource = Resource.create({"service.name": f"interlock-{service}", "service.namespace": "interlock"})
    provider = TracerProvider(resource=resource, sampler=ParentBasedTraceIdRatio(sample_ratio), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(
        endpoint=endpoint, insecure=not endpoint.startswith("https://"), timeout=_EXPORT_TIMEOUT_S
    )
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=_SCHEDULE_DELAY_MS))
    return provider


def _traceparent(span: Span) -> str:
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
    return carrier.get("traceparent", "")
