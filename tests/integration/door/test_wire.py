"""Requests that no gRPC library would send, and gRPC-Web: raw HTTP against a real Envoy."""

import asyncio
import struct
import zlib
from dataclasses import dataclass

import httpx
import pytest
from pyqwest import Client, Headers, HTTPTransport, HTTPVersion

from tests.integration.door.conftest import MESSAGE_BYTES, Running
from tests.integration.door.probe_service import PROBE, message

pytestmark = pytest.mark.asyncio(loop_scope="module")

GRPC = {"content-type": "application/grpc", "te": "trailers"}
SOON = GRPC | {"grpc-timeout": "500m"}
INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNIMPLEMENTED = "3", "8", "12"


@dataclass
class Answer:
    http: int
    headers: dict[str, str]
    trailers: dict[str, str]
    body: bytes

    @property
    def grpc_status(self) -> str:
        return self.trailers.get("grpc-status") or self.headers.get("grpc-status", "")


async def post(door: Running, body: bytes, headers: dict[str, str], method: str = "Echo") -> Answer:
    async with HTTPTransport(http_version=HTTPVersion.HTTP2) as transport:
        call = Client(transport).post(f"{door.url}/{PROBE}/{method}", Headers(list(headers.items())), body)
        answer = await asyncio.wait_for(call, 10)
    return Answer(answer.status, dict(answer.headers.items()), dict(answer.trailers.items()), bytes(answer.content))


def framed(payload: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(payload)) + payload


def echo(number: int) -> bytes:
    """An EchoRequest with this id: field 1, varint."""
    assert 0 < number < 128
    return bytes((0x08, number))


async def test_a_plain_http2_client_gets_message_and_trailers(door: Running) -> None:
    answer = await post(door, framed(echo(6)), GRPC)
    assert (answer.http, answer.trailers["grpc-status"]) == (200, "0")
    assert message("EchoResponse").FromString(answer.body[5:]).id == 6
    assert answer.trailers["x-probe-trailer"] == "after"


@pytest.mark.parametrize(
    "body",
    [b"", b"\x00\x00", framed(echo(1))[:-1], framed(echo(1)) + framed(echo(2)), framed(echo(1), flag=7)],
    ids=["no message", "short header", "short message", "two messages", "unknown flag"],
)
async def test_broken_framing_harms_nobody(door: Running, body: bytes) -> None:
    answer = await post(door, body, SOON)
    if door.kind == "envoy":
        # On the grpcio route its core answers, in its own way: some at the deadline only, some as if nothing were wrong.
        assert answer.grpc_status == INVALID_ARGUMENT
    assert answer.grpc_status
    assert (await post(door, framed(echo(6)), GRPC)).grpc_status == "0"


async def test_compression_without_a_name_or_with_an_unknown_one_is_refused(door: Running) -> None:
    squeezed = framed(zlib.compress(echo(1)), flag=1)
    for headers in (SOON, SOON | {"grpc-encoding": "identity"}):
        answer = await post(door, squeezed, headers)
        assert answer.grpc_status not in {"0", ""}
    answer = await post(door, squeezed, SOON | {"grpc-encoding": "brotli"})
    if door.kind == "envoy":
        assert answer.grpc_status == UNIMPLEMENTED
    assert answer.grpc_status not in {"0", ""}
    answer = await post(door, framed(b"not deflated", flag=1), SOON | {"grpc-encoding": "deflate"})
    assert answer.grpc_status not in {"0", ""}


async def test_a_request_without_te_trailers_is_never_answered_without_a_status(door: Running) -> None:
    answer = await post(door, framed(echo(1)), {"content-type": "application/grpc"})
    assert answer.grpc_status not in {"", "0"} or answer.http != 200


async def test_a_malformed_time_out_is_refused(door: Running) -> None:
    for value in ("10", "S", "123456789S", "-1S", "1s"):
        answer = await post(door, framed(echo(1)), GRPC | {"grpc-timeout": value})
        assert answer.grpc_status != "" or answer.http >= 400
        if door.kind == "envoy":
            assert answer.grpc_status == INVALID_ARGUMENT


async def test_another_content_type_is_no_grpc(door: Running) -> None:
    for content_type in ("application/json", "text/plain", "application/grpcx", "application/x-protobuf"):
        answer = await post(door, framed(echo(1)), GRPC | {"content-type": content_type})
        assert answer.http in {404, 415}
        assert "grpc-status" not in answer.headers
        assert answer.headers["x-correlation-id"]


async def test_a_message_over_the_limit_is_refused_before_it_is_whole(door: Running) -> None:
    answer = await post(door, framed(bytes(2 * MESSAGE_BYTES)), GRPC)
    assert answer.grpc_status == RESOURCE_EXHAUSTED


async def test_a_forged_http_version_of_grpc_is_refused(door: Running) -> None:
    async with httpx.AsyncClient(base_url=door.url) as client:
        for method in ("Echo", "EchoCold"):
            answer = await client.post(f"/{PROBE}/{method}", content=framed(echo(1)), headers=GRPC)
            assert answer.headers["grpc-status"] == INVALID_ARGUMENT
            assert answer.headers["grpc-message"] == "gRPC needs HTTP/2"


@pytest.mark.parametrize("method", ["Echo", "EchoCold"])
async def test_grpc_web_has_its_status_in_the_body(door: Running, method: str) -> None:
    headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1", "origin": "http://localhost:3000"}
    async with httpx.AsyncClient(base_url=door.url) as client:
        answer = await client.post(f"/{PROBE}/{method}", content=framed(echo(8)), headers=headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/grpc-web")
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    first = 5 + struct.unpack(">I", answer.content[1:5])[0]
    assert message("EchoResponse").FromString(answer.content[5:first]).id == 8
    assert answer.content[first] == 0x80
    assert b"grpc-status:0" in answer.content[first + 5 :]


async def test_grpc_web_reports_errors(door: Running) -> None:
    request = message("EchoRequest")(action="fail", text="t").SerializeToString()
    headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
    async with httpx.AsyncClient(base_url=door.url) as client:
        answer = await client.post(f"/{PROBE}/Echo", content=framed(request), headers=headers)
    assert answer.headers.get("grpc-status") == INVALID_ARGUMENT or b"grpc-status:3" in answer.content


async def test_a_foreign_web_page_may_not_speak_grpc_web(door: Running) -> None:
    headers = {"content-type": "application/grpc-web+proto", "origin": "http://evil.example"}
    async with httpx.AsyncClient(base_url=door.url) as client:
        answer = await client.post(f"/{PROBE}/Echo", content=framed(echo(8)), headers=headers)
    assert answer.status_code == 403 or answer.headers["grpc-status"] == "7"


async def test_resets_in_mid_body_leave_nothing_behind(door: Running) -> None:
    host, _, port = door.target.partition(":")
    for _ in range(50):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")
        await writer.drain()
        writer.transport.abort()
    answer = await post(door, framed(echo(9)), GRPC)
    assert answer.grpc_status == "0"
