"""gRPC calls through a real Envoy: the same answers whichever door is behind it."""

import asyncio
import os
import random
import re
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2

from tests.integration.door.conftest import MESSAGE_BYTES, Client, Running, client_of, running_door
from tests.integration.door.probe_service import PROBE, message

pytestmark = pytest.mark.asyncio(loop_scope="module")

Code = grpc.StatusCode


async def error_of(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    details = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    return status_pb2.Status.FromString(bytes(details))


async def test_a_unary_call_is_answered_with_its_own_bytes(door: Running) -> None:
    async with client_of(door) as client:
        for payload in (b"", b"\x00\xff", random.randbytes(200_000)):
            answer = await client.echo(id=7, payload=payload)
            assert (answer.id, answer.payload) == (7, payload)


async def test_no_answer_is_mixed_up_among_thousands_with_cancels(door: Running) -> None:
    async with client_of(door) as client:
        limit = asyncio.Semaphore(64)
        outcomes = {"ok": 0, "cancelled": 0, "wrong": 0}

        async def one(number: int) -> None:
            async with limit:
                call = client.echo(id=number, payload=number.to_bytes(4, "big"), action="sleep", sleep_s=0.001)
                if number % 5 == 0:
                    await asyncio.sleep(random.random() * 0.004)
                    call.cancel()
                try:
                    answer = await call
                except asyncio.CancelledError:
                    outcomes["cancelled"] += 1
                    return
                right = answer.id == number and answer.payload == number.to_bytes(4, "big")
                outcomes["ok" if right else "wrong"] += 1

        await asyncio.gather(*(one(number) for number in range(3000)))
        assert outcomes["wrong"] == 0
        assert outcomes["ok"] + outcomes["cancelled"] == 3000
        assert outcomes["ok"] >= 2400
        assert outcomes["cancelled"] > 0


async def test_a_cancelled_call_frees_its_handler_at_once(door: Running) -> None:
    async with client_of(door) as client:
        before = counts(await client.echo())
        calls = [client.echo(action="sleep", sleep_s=8.0) for _ in range(10)]
        await until_counts(client, lambda now: now["running"] >= 10)
        for call in calls:
            call.cancel()
        await until_counts(client, lambda now: now["running"] == 0)
        after = counts(await client.echo())
        assert after["cancelled"] - before["cancelled"] == 10


async def test_threads_work_off_what_waits_while_calls_overlap(kind: str, contract: Path) -> None:
    # A door of its own: calls that other tests left would overlap with these.
    async with running_door(kind, contract) as door, client_of(door) as client, asyncio.timeout(60):
        pid = door.envoy_pid() if kind == "envoy" else door.processes[0].pid
        names = {"wrk:worker_0", "envoy"} if kind == "envoy" else {"python", "event_engine"}
        calls = [client.echo(action="sleep", sleep_s=8.0) for _ in range(2)]
        await until_counts(client, lambda now: now["running"] >= 2)
        while not {(name, os.SCHED_BATCH) for name in names} <= classes_of(pid):
            await asyncio.sleep(0.01)
        for call in calls:
            call.cancel()
        # Calls that come one after the other are lone ones.
        while any(found == os.SCHED_BATCH for _, found in classes_of(pid)):
            await client.echo()


async def test_the_deadline_ends_the_call_and_its_handler(door: Running) -> None:
    async with client_of(door) as client:
        error = await error_of(client.echo(action="sleep", sleep_s=8.0, timeout=0.1))
        assert error.code() == Code.DEADLINE_EXCEEDED
        await until_counts(client, lambda now: now["running"] == 0)


async def test_a_call_without_a_deadline_gets_the_default(door: Running) -> None:
    async with client_of(door) as client:
        for cold in (False, True):
            answer = await client.echo(cold=cold, timeout=None)
            assert 4.0 < answer.remaining_s <= 5.0
            assert 55.0 < (await client.echo(cold=cold, timeout=500)).remaining_s <= 60.0


async def test_a_compressed_request_is_understood(door: Running) -> None:
    async with client_of(door) as client:
        for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            answer = await client.echo(id=1, payload=b"a" * 10_000, compression=compression)
            assert answer.payload == b"a" * 10_000


async def test_a_compressed_request_past_the_limit_is_refused(door: Running) -> None:
    async with client_of(door) as client:
        bomb = client.echo(payload=bytes(8 * MESSAGE_BYTES), compression=grpc.Compression.Gzip)
        error = await error_of(bomb)
        assert error.code() == Code.RESOURCE_EXHAUSTED
        # grpcio unpacks by itself, and says no number: "Decompressed message larger than max".
        assert door.kind == "grpcio" or f"the limit is {MESSAGE_BYTES}" in (error.details() or "")
        assert (await client.echo(id=2)).id == 2


async def test_malformed_protobuf_is_the_callers_mistake(door: Running) -> None:
    async with client_of(door) as client:
        for method in ("Echo", "EchoCold"):
            error = await error_of(client.raw(f"/{PROBE}/{method}", b"\xff\xff\xff"))
            assert error.code() == Code.INVALID_ARGUMENT
            assert "doortest" not in (error.details() or "")
            assert reason_of(error) == "MALFORMED_REQUEST"


async def test_a_message_over_the_limit_is_refused_with_size_and_limit(door: Running) -> None:
    size = message("EchoRequest")(payload=bytes(MESSAGE_BYTES + 1)).ByteSize()
    async with client_of(door) as client:
        for cold in (False, True):
            error = await error_of(client.echo(payload=bytes(MESSAGE_BYTES + 1), cold=cold))
            assert error.code() == Code.RESOURCE_EXHAUSTED
            # The grpcio door's words are its core's.
            assert re.search(rf"\b{size}\b.*\b{MESSAGE_BYTES}\b", error.details() or ""), error.details()
        assert (await client.echo(id=3)).id == 3


async def test_a_handler_that_exits_the_process_fails_alone(door: Running) -> None:
    async with client_of(door) as client:
        for action in ("exit", "bug"):
            error = await error_of(client.echo(action=action))
            assert error.code() == Code.INTERNAL
            assert "secret" not in (error.details() or "")
            assert (await client.echo(id=4)).id == 4


async def test_error_details_arrive_whole(door: Running) -> None:
    async with client_of(door) as client:
        for cold in (False, True):
            error = await error_of(client.echo(cold=cold, action="fail", text="100% ü\n"))
            status = status_of(error)
            assert error.code() == Code.INVALID_ARGUMENT
            assert error.details() == status.message
            bad, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
            assert [any(detail.Unpack(kind) for detail in status.details) for kind in (bad, info)] == [True, True]
            assert bad.field_violations[0].field == "text"
            assert (info.reason, info.domain) == ("INVALID_FIELD", "interlock")


async def test_metadata_travels_both_ways(door: Running) -> None:
    async with client_of(door) as client:
        for cold in (False, True):
            metadata = (("x-team", "blue"), ("x-correlation-id", "abc-1"), ("x-interlock-roles", "admin"))
            call = client.echo(cold=cold, count=1, metadata=metadata)
            answer = await call
            assert answer.metadata["x-team"] == "blue"
            assert "x-interlock-roles" not in answer.metadata
            initial = dict(await call.initial_metadata())
            assert initial["x-correlation-id"] == "abc-1"
            assert initial["x-probe-initial"] == "before"
            assert dict(await call.trailing_metadata())["x-probe-trailer"] == "after"


async def test_reserved_headers_are_no_metadata(door: Running) -> None:
    async with client_of(door) as client:
        hot, cold = await client.echo(count=1), await client.echo(cold=True, count=1)
        reserved = {"te", "content-type", "grpc-timeout", "grpc-accept-encoding", "x-interlock-client-timeout"}
        assert not reserved & (set(hot.metadata) | set(cold.metadata))


async def test_errors_carry_the_correlation_id(door: Running) -> None:
    async with client_of(door) as client:
        call = client.echo(action="fail", metadata=(("x-correlation-id", "abc-2"),))
        error = await error_of(call)
        both = [*(error.initial_metadata() or ()), *(error.trailing_metadata() or ())]
        assert [value for key, value in both if key == "x-correlation-id"] == ["abc-2"]


async def test_streams_take_the_grpcio_route(door: Running) -> None:
    async with client_of(door) as client:
        assert [answer.id async for answer in client.count(count=5, sleep_s=0.001)] == [0, 1, 2, 3, 4]
        assert (await client.collect([1, 2, 3])).id == 6
        assert [answer.id async for answer in client.chat([9, 8])] == [9, 8]


async def test_health_and_unknown_methods_are_answered(door: Running) -> None:
    async with client_of(door) as client:
        answer = health_pb2.HealthCheckResponse.FromString(await client.raw("/grpc.health.v1.Health/Check", b""))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        for path in (f"/{PROBE}/Nothing", "/no.such.Service/Call"):
            assert (await error_of(client.raw(path, b""))).code() == Code.UNIMPLEMENTED


async def test_a_stream_to_an_unknown_service_is_refused_when_it_begins(door: Running) -> None:
    async with client_of(door) as client:
        stream: Any = client.channel.stream_stream("/no.such.Service/Call")(timeout=5)
        # Nothing is written: grpc.aio's client calls a write that meets the refusal INTERNAL.
        assert await stream.code() == Code.UNIMPLEMENTED


async def test_reflection_lists_the_services(door: Running) -> None:
    from grpc_reflection.v1alpha import reflection_pb2 as pb  # noqa: PLC0415

    async with client_of(door) as client:
        info = client.channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=pb.ServerReflectionRequest.SerializeToString,
            response_deserializer=pb.ServerReflectionResponse.FromString,
        )
        answers = [answer async for answer in info(iter([pb.ServerReflectionRequest(list_services="")]), timeout=10)]
        assert PROBE in {service.name for service in answers[0].list_services_response.service}


async def test_a_handler_that_uses_its_time_is_not_cut_before(door: Running) -> None:
    async with client_of(door) as client:
        assert (await client.echo(id=5, action="sleep", sleep_s=1.2, timeout=3)).id == 5


def reason_of(error: grpc.aio.AioRpcError) -> str:
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status_of(error).details)
    return info.reason


def classes_of(pid: int) -> set[tuple[str, int]]:
    """Names and scheduling classes of the threads of a process."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError, FileNotFoundError):
            found.add(((task / "comm").read_text().strip(), os.sched_getscheduler(int(task.name))))
    return found


def counts(answer: Any) -> dict[str, int]:
    return {key: int(value) for key, value in (pair.split("=") for pair in answer.text.split())}


async def until_counts(client: Client, wanted: Any) -> None:
    async with asyncio.timeout(3):
        while not wanted(counts(await client.echo())):
            await asyncio.sleep(0.005)
