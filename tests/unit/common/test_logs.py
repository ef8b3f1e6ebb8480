"""Log lines."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from services.common.call import CURRENT_CALL, Call
from services.common.logs import LineWriter, configure_logs

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = True
    structlog.reset_defaults()


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


def test_json_is_one_object_a_line_whatever_the_text(out: io.StringIO) -> None:
    configure_logs("router", form="json", stream=out)
    structlog.get_logger().warning("evil", model="a\nb\x1b[2J\u202e")
    lines = out.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].isascii()
    line = json.loads(lines[0])
    assert (line["service"], line["level"], line["event"]) == ("router", "warning", "evil")
    assert "\x1b" not in line["model"]


def test_a_traceback_stays_on_its_line(out: io.StringIO) -> None:
    configure_logs("router", form="json", stream=out)
    structlog.get_logger().error("failed", exc_info=ValueError("why"))
    assert len(out.getvalue().splitlines()) == 1
    assert "ValueError: why" in json.loads(out.getvalue())["exception"]


def test_lines_of_a_call_name_its_request_and_trace(out: io.StringIO) -> None:
    configure_logs("router", form="json", stream=out)
    token = CURRENT_CALL.set(Call("m", request_id="id-1", traceparent=f"00-{TRACE_ID}-b7ad6b7169203331-01"))
    structlog.get_logger().info("inside")
    CURRENT_CALL.reset(token)
    structlog.get_logger().info("outside")
    inside, outside = map(json.loads, out.getvalue().splitlines())
    assert (inside["request_id"], inside["trace_id"]) == ("id-1", TRACE_ID)
    assert "request_id" not in outside


def test_libraries_log_in_the_same_form(out: io.StringIO) -> None:
    configure_logs("router", form="json", stream=out)
    logging.getLogger("some.library").warning("careful with %s", "x\ny")
    line = json.loads(out.getvalue())
    assert (line["service"], line["level"]) == ("router", "warning")
    assert line["event"].startswith("careful with x")


def test_console_lines_hold_no_control_characters_of_clients(out: io.StringIO) -> None:
    configure_logs("router", form="console", stream=out)
    structlog.get_logger().info("hello", model="a\nb\x07")
    assert len(out.getvalue().splitlines()) == 1
    assert "\x07" not in out.getvalue()


def test_the_level_is_a_threshold(out: io.StringIO) -> None:
    configure_logs("router", form="json", level="warning", stream=out)
    structlog.get_logger().info("quiet")
    assert out.getvalue() == ""


def test_a_closed_pipe_loses_lines_and_nothing_else(out: io.StringIO) -> None:
    out.close()
    LineWriter(out).msg("lost")
