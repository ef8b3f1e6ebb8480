"""REST through a real Envoy: status, headers and bytes are the same on both doors."""

import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2

from tests.integration.door.conftest import DOORS, MESSAGE_BYTES, Running, running_door

pytestmark = pytest.mark.asyncio(loop_scope="module")

SAME_ID = {"x-correlation-id": "rest-1", "content-type": "application/json"}
DEFAULT_DEADLINE_S = 1.0
HOT_AND_COLD = ("/v1/echo", "/v1/cold", "/v2/models/m.1/infer", "/v2/models/m/versions/3/infer")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(contract: Path) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
    """A client of each door, so that their answers can be laid side by side."""
    extra = {"INTERLOCK_DEFAULT_DEADLINE_S": str(DEFAULT_DEADLINE_S)}
    async with (
        running_door("envoy", contract, **extra) as envoy,
        running_door("grpcio", contract, **extra) as grpcio,
        client_of(envoy) as first,
        client_of(grpcio) as second,
    ):
        yield {"envoy": first, "grpcio": second}


def client_of(running: Running) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=running.url, timeout=10, headers={"accept-encoding": "identity"})


async def same(both: dict[str, httpx.AsyncClient], verb: str, path: str, **request: Any) -> httpx.Response:
    """Send one request to both doors, check that nobody could tell them apart, and return the answer."""
    first, second = [await both[kind].request(verb, path, **request) for kind in DOORS]
    assert first.status_code == second.status_code
    assert first.content == second.content
    assert shown(first) == shown(second)
    return first


def shown(answer: httpx.Response) -> dict[str, str]:
    return {key: value for key, value in answer.headers.items() if key not in {"date", "connection"}}


async def test_a_twin_answers_with_the_handlers_bytes(both: dict[str, httpx.AsyncClient]) -> None:
    for path in HOT_AND_COLD:
        answer = await same(both, "POST", path, content=b'{"text": "Stra\xc3\x9fe"}', headers=SAME_ID)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-correlation-id"] == "rest-1"
        assert answer.headers["x-probe-initial"] == "before"
        assert not [key for key in answer.headers if key.startswith(("x-interlock", "grpc-"))]
        assert answer.json()["body"] == {"text": "Straße"}


async def test_path_variables_and_headers_reach_the_handler(both: dict[str, httpx.AsyncClient]) -> None:
    headers = SAME_ID | {"inference-header-content-length": "2", "x-interlock-principal": "root"}
    answer = (await same(both, "POST", "/v2/models/fraud-1/versions/2.0.1/infer", json={}, headers=headers)).json()
    assert (answer["model"], answer["version"]) == ("fraud-1", "2.0.1")
    assert answer["header_length"] == "2"
    assert answer["principal"] == "none"
    assert answer["content_type"] == "application/json"


async def test_the_trace_of_the_caller_passes_through(both: dict[str, httpx.AsyncClient]) -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = await same(both, "POST", "/v1/echo", json={}, headers=SAME_ID | {"traceparent": traceparent})
    assert answer.json()["traceparent"] == traceparent


async def test_a_name_that_needs_decoding_is_decoded_alike(both: dict[str, httpx.AsyncClient]) -> None:
    answer = await same(both, "POST", "/v2/models/a%20b%C3%BC/infer", json={}, headers=SAME_ID)
    assert answer.json()["model"] == "a bü"


async def test_the_handler_chooses_status_and_content_type(both: dict[str, httpx.AsyncClient]) -> None:
    body = {"action": "teapot", "answer_type": "application/octet-stream"}
    for path in HOT_AND_COLD:
        answer = await same(both, "POST", path, json=body, headers=SAME_ID)
        assert answer.status_code == 418
        assert answer.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("action", "http", "code"), [("fail", 400, 3), ("missing", 404, 5), ("bug", 500, 13), ("exit", 500, 13)]
)
async def test_errors_are_the_same_json(both: dict[str, httpx.AsyncClient], action: str, http: int, code: int) -> None:
    for path in HOT_AND_COLD:
        answer = await same(both, "POST", path, json={"action": action, "text": "ü"}, headers=SAME_ID)
        assert answer.status_code == http
        assert answer.headers["x-correlation-id"] == "rest-1"
        assert "secret" not in answer.text
        if path.startswith("/v2"):
            assert set(answer.json()) == {"error"}
        else:
            assert answer.json()["code"] == code
            assert answer.json()["details"][0]["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"


async def test_the_deadline_of_a_rest_call_holds(both: dict[str, httpx.AsyncClient]) -> None:
    headers = SAME_ID | {"grpc-timeout": "200m"}
    for path in ("/v1/echo", "/v1/cold"):
        for kind in DOORS:
            answer = await both[kind].post(path, json={"action": "sleep", "sleep_s": 9}, headers=headers)
            assert answer.status_code == 504, answer.text
            assert answer.json()["code"] == 4


async def test_a_rest_call_without_a_deadline_gets_the_default(both: dict[str, httpx.AsyncClient]) -> None:
    for path in ("/v1/echo", "/v2/models/m/infer"):
        answer = await same(both, "POST", path, json={"action": "sleep", "sleep_s": 9}, headers=SAME_ID)
        assert answer.status_code == 504
        assert DEFAULT_DEADLINE_S <= answer.elapsed.total_seconds() < 9


async def test_an_oversize_body_is_413_and_says_size_and_limit(both: dict[str, httpx.AsyncClient]) -> None:
    async def in_parts() -> AsyncIterator[bytes]:
        for _ in range(2):
            yield bytes(MESSAGE_BYTES)

    limit = MESSAGE_BYTES - 8192  # what else is in the message has room
    for path in HOT_AND_COLD:
        answer = await same(both, "POST", path, content=bytes(MESSAGE_BYTES + 1), headers=SAME_ID)
        text = f"the body has {MESSAGE_BYTES + 1} bytes, the limit is {limit}"
        told = {"limit_bytes": str(limit), "size_bytes": str(MESSAGE_BYTES + 1)}
        check_too_large(answer, path, text, told)
        for kind in DOORS:
            answer = await both[kind].post(path, content=in_parts(), headers=SAME_ID)
            text = f"the body has more than {limit} bytes, the limit is {limit}"
            check_too_large(answer, path, text, {"limit_bytes": str(limit)})


def check_too_large(answer: httpx.Response, path: str, text: str, metadata: dict[str, str]) -> None:
    assert answer.status_code == 413
    if path.startswith("/v2"):
        assert answer.json() == {"error": text}
    else:
        status = json_format.Parse(answer.content, status_pb2.Status())
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert (status.code, status.message, info.reason) == (8, text, "MESSAGE_TOO_LARGE")
        assert dict(info.metadata) == metadata


async def test_a_body_just_under_the_limit_passes(both: dict[str, httpx.AsyncClient]) -> None:
    body = json.dumps({"text": "x" * (MESSAGE_BYTES // 3)})
    assert (await same(both, "POST", "/v1/echo", content=body, headers=SAME_ID)).status_code == 200


async def test_an_unknown_path_is_json(both: dict[str, httpx.AsyncClient]) -> None:
    for verb, path in (("GET", "/v1/nothing"), ("POST", "/v1/models"), ("GET", "/v1/echo"), ("GET", "/")):
        answer = await same(both, verb, path, headers=SAME_ID)
        assert answer.status_code == 404
        status = json_format.Parse(answer.content, status_pb2.Status())
        info = error_details_pb2.ErrorInfo()
        assert status.code == 5
        assert status.details[0].Unpack(info)
        assert (info.reason, info.domain) == ("MALFORMED_REQUEST", "interlock")
        assert answer.headers["x-correlation-id"] == "rest-1"
    answer = await same(both, "GET", "/v2/nothing", headers=SAME_ID)
    assert (answer.status_code, set(answer.json())) == (404, {"error"})


async def test_an_unknown_query_parameter_is_refused(both: dict[str, httpx.AsyncClient]) -> None:
    answer = await same(both, "POST", "/v1/echo?verbose=1", json={}, headers=SAME_ID)
    assert (answer.status_code, answer.json()["code"]) == (400, 3)
    answer = await same(both, "POST", "/v2/models/m/infer?verbose=1", json={}, headers=SAME_ID)
    assert (answer.status_code, set(answer.json())) == (400, {"error"})


async def test_a_hidden_slash_in_a_name_is_refused(both: dict[str, httpx.AsyncClient]) -> None:
    for path in ("/v1/probes/a%2fb", "/v2/models/..%2f..%2fetc/infer", "/v2/models/a%5cb/infer"):
        for kind in DOORS:
            answer = await both[kind].post(path, json={})
            assert answer.status_code == 400
            assert set(answer.json()) == ({"error"} if path.startswith("/v2") else {"code", "message", "details"})
            assert answer.headers["x-correlation-id"]


async def test_a_transcoded_rpc_prints_defaults_with_proto_names(both: dict[str, httpx.AsyncClient]) -> None:
    for kind in DOORS:
        answer = (await both[kind].get("/v1/probes/0?action=echo&count=0&text=t", headers=SAME_ID)).json()
        assert (answer["id"], answer["text"], answer["payload"]) == ("0", "t", "")
        assert 0 < answer["remaining_s"] <= DEFAULT_DEADLINE_S


async def test_a_transcoded_error_has_its_details(both: dict[str, httpx.AsyncClient]) -> None:
    answer = await same(both, "GET", "/v1/probes/1?action=fail&text=t", headers=SAME_ID)
    assert answer.status_code == 400
    assert answer.headers["x-correlation-id"] == "rest-1"
    kinds = [detail["@type"].rpartition(".")[2] for detail in answer.json()["details"]]
    assert kinds == ["ErrorInfo", "BadRequest"]


async def test_every_answer_has_a_correlation_id_of_its_own(both: dict[str, httpx.AsyncClient]) -> None:
    seen = set()
    for kind in DOORS:
        for path in ("/v1/echo", "/v1/cold", "/v1/nothing", "/v2/models/m/infer"):
            answer = await both[kind].post(path, json={})
            seen.update(answer.headers.get_list("x-correlation-id"))
    assert len(seen) == 8


async def test_a_foreign_web_page_is_refused(both: dict[str, httpx.AsyncClient]) -> None:
    for origin in ("http://evil.example", "null", "http://localhost.evil.example", "http://127.0.0.1.evil.example:80"):
        for path in ("/v1/echo", "/v1/cold", "/v1/nothing"):
            answer = await same(both, "POST", path, json={}, headers=SAME_ID | {"origin": origin})
            assert (answer.status_code, answer.json()["code"]) == (403, 7)
            assert "access-control-allow-origin" not in answer.headers
    answer = await same(
        both, "POST", "/v2/models/m/infer", json={}, headers=SAME_ID | {"origin": "http://evil.example"}
    )
    assert (answer.status_code, set(answer.json())) == (403, {"error"})


async def test_a_local_web_page_may_call(both: dict[str, httpx.AsyncClient]) -> None:
    for origin in ("http://localhost:3000", "http://127.0.0.1:8080"):
        for path in ("/v1/echo", "/v1/cold"):
            answer = await same(both, "POST", path, json={}, headers=SAME_ID | {"origin": origin})
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == origin
            assert "x-correlation-id" in answer.headers["access-control-expose-headers"]


async def test_a_preflight_is_answered_for_local_pages_only(both: dict[str, httpx.AsyncClient]) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    answer = await same(both, "OPTIONS", "/v1/echo", headers=asked | {"origin": "http://localhost:3000"})
    assert answer.status_code == 200
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "content-type" in answer.headers["access-control-allow-headers"]
    answer = await same(both, "OPTIONS", "/v1/echo", headers=SAME_ID | asked | {"origin": "http://evil.example"})
    assert answer.status_code == 403


async def test_connections_are_probed_so_that_a_client_that_vanished_is_noticed(
    both: dict[str, httpx.AsyncClient],
) -> None:
    for kind in DOORS:
        url = both[kind].base_url
        with socket.create_connection((url.host, url.port)) as silent:
            kind_of_timer, ticks = timer_of(url.port or 0, silent.getsockname()[1])
            assert kind_of_timer == "02", "the next that the kernel does with this connection is to probe it"
            assert ticks <= 30 * 100


def timer_of(port: int, client_port: int) -> tuple[str, int]:
    """What the kernel waits for on the server's side of a connection, and for how many hundredths of a second."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]]
    ends = (f":{port:04X}", f":{client_port:04X}")
    (timer,) = (row[5] for row in rows if row[1].endswith(ends[0]) and row[2].endswith(ends[1]))
    kind, _, ticks = timer.partition(":")
    return kind, int(ticks, 16)


async def test_a_body_that_stops_halfway_holds_nobody_up(both: dict[str, httpx.AsyncClient]) -> None:
    for kind in DOORS:
        url = both[kind].base_url
        with socket.create_connection((url.host, url.port)) as stalled:
            stalled.sendall(b"POST /v1/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            answer = await both[kind].post("/v1/echo", json={}, headers=SAME_ID)
            assert answer.status_code == 200
