"""gRPC framing without a library."""

import gzip
import urllib.parse
import zlib
from collections.abc import Callable

import pytest
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from services.common.door_request import Headers
from services.common.errors import InvalidArgument, ResourceExhausted, Unimplemented
from services.common.grpc_wire import (
    frame,
    is_grpc_content_type,
    parse_timeout,
    percent_encode,
    status_headers,
    unframe,
)

LIMIT = 1000


@given(st.binary(max_size=500))
def test_a_framed_message_comes_back(message: bytes) -> None:
    assert unframe(frame(message), "", LIMIT) == message


@given(st.binary(max_size=64))
def test_no_bytes_break_the_parser(body: bytes) -> None:
    try:
        unframe(body, "gzip", LIMIT)
    except (InvalidArgument, ResourceExhausted, Unimplemented):
        return
    assert len(body) >= 5


@pytest.mark.parametrize(("name", "squeeze"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_messages_are_inflated_up_to_the_limit(name: str, squeeze: Callable[[bytes], bytes]) -> None:
    def framed(message: bytes) -> bytes:
        squeezed = squeeze(message)
        return b"\x01" + len(squeezed).to_bytes(4, "big") + squeezed

    assert unframe(framed(b"a" * LIMIT), name, LIMIT) == b"a" * LIMIT
    with pytest.raises(ResourceExhausted) as caught:
        unframe(framed(b"a" * 10_000_000), name, LIMIT)
    assert caught.value.retry_after_s is None
    for broken in (framed(b"abc")[:-1], framed(b"abc") + b"x"):
        resized = broken[:1] + (len(broken) - 5).to_bytes(4, "big") + broken[5:]
        with pytest.raises(InvalidArgument):
            unframe(resized, name, LIMIT)


def test_an_unknown_compression_is_unimplemented() -> None:
    with pytest.raises(Unimplemented):
        unframe(b"\x01\x00\x00\x00\x01x", "br", LIMIT)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("", None), ("1S", 1.0), ("250m", 0.25), ("2M", 120.0), ("1H", 3600.0), ("99999999n", 0.099999999), ("5u", 5e-6)],
)
def test_time_outs_have_a_unit(value: str, seconds: float | None) -> None:
    assert parse_timeout(value.encode()) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["1", "S", "123456789S", "-1S", "1s", "1 S", "1.5S", "٣S"])
def test_other_time_outs_are_refused(value: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_timeout(value.encode())


@given(st.text(max_size=50))
def test_messages_survive_percent_encoding(text: str) -> None:
    encoded = percent_encode(text.encode("utf-8", "replace").decode())
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    assert urllib.parse.unquote(encoded.decode()) == text.encode("utf-8", "replace").decode()


def test_a_status_is_three_headers() -> None:
    headers = dict(status_headers(Status(code=3, message="100 %")))
    assert headers[b"grpc-status"] == b"3"
    assert headers[b"grpc-message"] == b"100 %25"


@pytest.mark.parametrize(
    ("value", "expected"),
    [("application/grpc", True), ("application/grpc+proto", True), ("application/grpc; charset=x", True)]
    + [
        (value, False)
        for value in ("", "application/json", "application/grpc+json", "application/grpc-web", "application/grpcx")
    ],
)
def test_only_protobuf_over_grpc_is_ours(value: str, expected: bool) -> None:
    assert is_grpc_content_type(value.encode()) is expected


def test_headers_are_the_callers_metadata_without_what_the_transport_says() -> None:
    pairs = [
        (b"te", b"trailers"),
        (b"x-tenant", b"a"),
        (b"x-tenant", b"b"),
        (b"trace-bin", b"\xff"),
        (b"name", b"\xe9"),
    ]
    headers = Headers([*pairs, (b"x-interlock-principal", b"root")])
    assert dict(headers) == {"x-tenant": "b", "name": "\u00e9"}
    assert len(headers) == 2
    assert headers.get("x-interlock-principal") is None
    assert (headers.text(b"te"), headers.text(b"grpc-timeout")) == ("trailers", "")
