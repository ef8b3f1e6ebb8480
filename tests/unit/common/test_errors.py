"""Exceptions as statuses."""

import asyncio

import grpc
import pytest
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from interlock.types.v1.error_reason_pb2 import ErrorReason

from services.common import errors
from services.common.errors import (
    HTTP_STATUS,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ServiceError,
    Violation,
    echo,
    http_status,
    status_reason,
    to_status,
)


def _kinds() -> list[type[ServiceError]]:
    # Services that other tests have imported add their own below these. What is relayed is of any kind.
    kinds = (kind for kind in ServiceError.__subclasses__() if kind.__module__ == ServiceError.__module__)
    return [kind for kind in kinds if kind is not errors.RelayedFailure]


@pytest.mark.parametrize("kind", _kinds(), ids=lambda kind: kind.__name__)
def test_each_kind_has_its_own_code_and_one_error_info(kind: type[ServiceError]) -> None:
    status = to_status(kind("what happened", reason="WHY", metadata={"model": "m"}), "id-1")
    info = ErrorInfo()
    assert status.code == kind.code.value[0]
    assert status.message == "what happened"
    assert len(status.details) == 1
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == ("WHY", "interlock", {"model": "m"})


def test_no_two_kinds_share_a_code() -> None:
    codes = [kind.code for kind in _kinds()]
    assert len(codes) == len(set(codes)) == 13


def test_violations_and_delay_are_details_of_their_own() -> None:
    error = ResourceExhausted("full", reason="FULL", violations=[Violation("a", "want 1, got 2")], retry_after_s=1.5)
    _, retry, request = to_status(error, "").details
    delay, fields = RetryInfo(), BadRequest()
    assert retry.Unpack(delay)
    assert request.Unpack(fields)
    assert delay.retry_delay.ToMilliseconds() == 1500
    assert [(each.field, each.description) for each in fields.field_violations] == [("a", "want 1, got 2")]


def test_a_bug_shows_nothing_but_the_request_id() -> None:
    status = to_status(ValueError("secret path /srv/keys"), "id-9")
    assert status.code == Code.INTERNAL
    assert status.message == "internal error; the log has it under request id id-9"
    assert b"secret" not in status.SerializeToString()


def test_a_cancellation_passes_through_untouched() -> None:
    cancellation = asyncio.CancelledError()
    with pytest.raises(asyncio.CancelledError) as caught:
        to_status(cancellation, "")
    assert caught.value is cancellation


@pytest.mark.parametrize(
    ("peer", "ours"),
    [
        (grpc.StatusCode.UNAVAILABLE, Code.UNAVAILABLE),
        (grpc.StatusCode.CANCELLED, Code.UNAVAILABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Code.DEADLINE_EXCEEDED),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Code.RESOURCE_EXHAUSTED),
        (grpc.StatusCode.INVALID_ARGUMENT, Code.INTERNAL),
        (grpc.StatusCode.UNKNOWN, Code.INTERNAL),
    ],
)
def test_a_peers_failure_is_told_without_its_text(peer: grpc.StatusCode, ours: int) -> None:
    error = grpc.aio.AioRpcError(peer, grpc.aio.Metadata(), grpc.aio.Metadata(), details="tcp 10.0.0.7:9004 refused")
    status = to_status(error, "id")
    assert status.code == ours
    assert b"10.0.0.7" not in status.SerializeToString()
    assert status_reason(status) != ""


def test_no_error_outgrows_the_trailers() -> None:
    violations = [Violation("f" * 5000, "d" * 5000)] * 1000
    error = InvalidArgument("m" * 50_000, reason="R", metadata={"k": "v" * 50_000}, violations=violations)
    status = to_status(error, "")
    # Base64 adds a third, and the message travels a second time beside the details.
    assert status.ByteSize() * 4 / 3 + len(status.message) < 8 * 1024


def test_the_first_violations_are_kept() -> None:
    violations = [Violation(f"rows[{n}]", "want a number, got text") for n in range(1000)]
    detail = BadRequest()
    assert to_status(InvalidArgument("m", reason="R", violations=violations), "").details[1].Unpack(detail)
    fields = [each.field for each in detail.field_violations]
    assert 20 < len(fields) < 1000
    assert fields == [each.field for each in violations[: len(fields)]]


def test_client_text_cannot_forge_lines_or_terminal_codes() -> None:
    status = to_status(NotFound("no\r\nx: y\x1b[2J\ud800", reason="R", metadata={"k": "a\nb"}), "")
    info = ErrorInfo()
    status.details[0].Unpack(info)
    assert status.message.isprintable()
    assert info.metadata["k"] == "a\\nb"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", '"plain"'),
        ("a\nb", '"a\\nb"'),
        ("x" * 65, '"' + "x" * 64 + '..."'),
        ("\u202e" * 64, '"' + "\\u202e" * 10 + "\\u20" + '..."'),
        ("\udcff", '"\\udcff"'),
    ],
)
def test_echo_is_short_and_printable(value: str, shown: str) -> None:
    assert echo(value) == shown
    assert len(shown) <= 64 + 5


def test_every_code_has_an_http_status() -> None:
    assert set(HTTP_STATUS) == set(Code.values())
    assert http_status(Status(code=999)) == 500


def test_a_message_too_large_is_413_and_other_exhaustion_429() -> None:
    large = to_status(ResourceExhausted("big", reason=errors.MESSAGE_TOO_LARGE), "")
    full = to_status(ResourceExhausted("full", reason="FULL"), "")
    assert (http_status(large), http_status(full)) == (413, 429)


def test_reasons_of_common_are_in_the_contract() -> None:
    ours = {
        errors.MALFORMED_REQUEST,
        errors.INVALID_FIELD,
        errors.INVALID_NAME,
        errors.MESSAGE_TOO_LARGE,
        errors.BYTES_IN_FLIGHT_EXCEEDED,
        errors.DEADLINE_PASSED,
        errors.DRAINING,
        errors.DEPENDENCY_UNAVAILABLE,
        errors.INTERNAL,
        "INVALID_PAGE_TOKEN",
    }
    assert {f"ERROR_REASON_{reason}" for reason in ours} <= set(ErrorReason.keys())


def test_what_is_said_twice_is_put_into_words_once_and_violations_stay_with_their_own() -> None:
    plain = [to_status(ResourceExhausted("full", reason="R", retry_after_s=0.2), str(call)) for call in range(2)]
    assert plain[0] is plain[1]
    broken = to_status(InvalidArgument("m", reason="R", violations=[Violation("x", "want 1, got 2")]), "")
    assert len(broken.details) == 2
    assert len(to_status(InvalidArgument("m", reason="R"), "").details) == 1
