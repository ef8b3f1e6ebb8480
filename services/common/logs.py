"""Structured logs: one JSON object a line, or a readable form on a terminal.

Every line names the service, and within a call its request id and trace id.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from services.common.call import current_call

LogFormat = Literal["auto", "json", "console"]
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class LineWriter:
    """Writes finished lines; a closed pipe loses lines, never a call."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        """Write one line."""
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            return

    debug = info = warning = warn = error = critical = exception = log = msg


def configure_logs(
    service: str,
    *,
    form: LogFormat = "auto",
    level: str = "info",
    stream: TextIO | None = None,
    process: int | None = None,
) -> None:
    """Send the logs of this process, those of libraries included, to `stream` (default: standard output).

    `process` is its number among several of the service, and then stands in each line.
    """
    out = sys.stdout if stream is None else stream
    json_lines = form == "json" or (form == "auto" and not out.isatty())
    shared: list[Processor] = [
        _Stamp(service, process),
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _escape_controls,
    ]
    # ensure_ascii keeps control and bidirectional characters of clients out of terminals and log viewers.
    last: Processor = structlog.processors.JSONRenderer() if json_lines else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[*shared, last],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: LineWriter(out),
        cache_logger_on_first_use=False,
    )
    _adopt_stdlib(out, shared, last, max(_LEVELS[level], logging.INFO))


class _Stamp:
    """Adds what every line carries."""

    def __init__(self, service: str, process: int | None) -> None:
        self._service = service
        self._process = process

    def __call__(self, logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
        event["service"] = self._service
        if self._process is not None:
            event["process"] = self._process
        call = current_call()
        if call is not None:
            event.setdefault("request_id", call.request_id)
            if call.traceparent:
                event.setdefault("trace_id", call.traceparent.split("-")[1])
        return event


def _escape_controls(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable() and key != "exception":
            event[key] = value.encode("unicode_escape").decode("ascii")
    return event


def _adopt_stdlib(out: TextIO, shared: list[Processor], last: Processor, level: int) -> None:
    def drop_stdlib_fields(_: WrappedLogger, __: str, event: EventDict) -> MutableMapping[str, Any]:
        return structlog.stdlib.ProcessorFormatter.remove_processors_meta(_, __, event)

    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[drop_stdlib_fields, last])
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.raiseExceptions = False
