"""Tensors in system shared memory at the router, over gRPC and REST: one table of regions for both."""

import struct
from collections.abc import Iterator
from typing import Any

import pytest
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import Message
from inference import grpc_service_pb2 as oip_pb
from inference import shared_memory_pb2 as memory_pb
from interlock.router.v1 import http_service_pb2 as pb

from tests.fakes.router_models import MIRROR_TYPES, PAIR
from tests.fakes.router_world import World, error_of, reason_of
from tests.fakes.shared_object import SharedObject, shared_object
from tests.integration.router.test_oip_grpc import TWO_ELEMENTS, mirror_infer, pair_infer

OIP = "inference.GRPCInferenceService/"
HTTP = "interlock.router.v1.RouterHttpService/"
OUTPUTS_AT = 500


@pytest.fixture
def thing() -> Iterator[SharedObject]:
    with shared_object(1000) as found:
        yield found


@pytest.fixture
async def world(idle_world: World) -> World:
    idle_world.overrides["system_shared_memory_bytes"] = 10_000
    await idle_world.start_router()
    return idle_world


async def register(world: World, thing: SharedObject, name: str = "r", size: int = 1000) -> None:
    asked = memory_pb.SystemSharedMemoryRegisterRequest(name=name, key=thing.key, byte_size=size)
    await world.oip.SystemSharedMemoryRegister(asked, timeout=5)


def put_in(tensor: Any, size: int, offset: int = 0, region: str = "r") -> None:
    """Say of an input or an output that it is in a region, as tritonclient does."""
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = size
    if offset:
        tensor.parameters["shared_memory_offset"].int64_param = offset


def pair_in_region(offset: int = 0) -> oip_pb.ModelInferRequest:
    request = pair_infer()
    del request.raw_input_contents[:]
    put_in(request.inputs[0], 16, offset)
    return request


@pytest.mark.rpc(OIP + "SystemSharedMemoryRegister", "happy")
async def test_equal_requests_see_what_the_region_holds_now(world: World, thing: SharedObject) -> None:
    """Nothing may be remembered by the bytes of a request: they say where its values are, not what they are."""
    await register(world, thing)
    for values in ((1, 2), (3, 4), (1, 2)):
        thing.put(struct.pack("<2d", *values))
        answer = await world.oip.ModelInfer(pair_in_region(), timeout=5)
        assert answer.id == "mine"
        assert struct.unpack("<d", answer.raw_output_contents[0]) == (1000 * values[0] + values[1],)


async def test_every_element_type_goes_in_and_out_through_a_region(world: World, thing: SharedObject) -> None:
    """Every second input comes in the message, and so does every third output; each keeps its place."""
    await register(world, thing)
    request = mirror_infer()
    raw = list(request.raw_input_contents)
    del request.raw_input_contents[:]
    for at, name in enumerate(MIRROR_TYPES):
        if at % 2:
            request.raw_input_contents.append(raw[at])
        else:
            thing.put(raw[at], 30 * at)
            put_in(request.inputs[at], len(raw[at]), 30 * at)
        wanted = request.outputs.add(name=f"out_{name}")
        if at % 3:
            put_in(wanted, 30, OUTPUTS_AT + 30 * at)
    answer = await world.oip.ModelInfer(request, timeout=5)
    assert [output.name for output in answer.outputs] == [f"out_{name}" for name in MIRROR_TYPES]
    for at, (name, output) in enumerate(zip(MIRROR_TYPES, answer.outputs, strict=True)):
        want = TWO_ELEMENTS[name][0]
        if at % 3:
            assert answer.raw_output_contents[at] == b""
            assert output.parameters["shared_memory_region"].string_param == "r"
            assert output.parameters["shared_memory_byte_size"].int64_param == len(want)
            assert output.parameters["shared_memory_offset"].int64_param == OUTPUTS_AT + 30 * at
            assert thing.get(OUTPUTS_AT + 30 * at, 30) == want + bytes(30 - len(want))
        else:
            assert answer.raw_output_contents[at] == want
            assert not output.parameters


@pytest.mark.rpc(HTTP + "SystemSharedMemoryStatus", "happy")
@pytest.mark.rpc(HTTP + "SystemSharedMemoryRegister", "happy")
@pytest.mark.rpc(HTTP + "SystemSharedMemoryUnregister", "happy")
@pytest.mark.rpc(OIP + "SystemSharedMemoryStatus", "happy")
@pytest.mark.rpc(OIP + "SystemSharedMemoryUnregister", "happy")
async def test_a_region_registered_over_rest_serves_grpc_and_rest(world: World, thing: SharedObject) -> None:
    body = HttpBody(data=f'{{"key": "{thing.key}", "offset": 8, "byte_size": 900}}'.encode())
    asked = pb.SystemSharedMemoryRegisterHttpRequest(region_name="r", body=body)
    assert await world.get("SystemSharedMemoryRegister", asked) == (200, {})
    listed = {"name": "r", "key": thing.key, "offset": 8, "byte_size": 900}
    assert await world.get("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusHttpRequest()) == (200, [listed])
    found = await world.oip.SystemSharedMemoryStatus(memory_pb.SystemSharedMemoryStatusRequest(name="r"), timeout=5)
    region = found.regions["r"]
    assert {"name": region.name, "key": region.key, "offset": region.offset, "byte_size": region.byte_size} == listed

    thing.put(struct.pack("<2d", 5, 6), 8 + 100)
    assert struct.unpack("<d", (await world.oip.ModelInfer(pair_in_region(100), timeout=5)).raw_output_contents[0]) == (
        5006.0,
    )
    where = {"shared_memory_region": "r", "shared_memory_offset": 100, "shared_memory_byte_size": 16}
    there = {"shared_memory_region": "r", "shared_memory_offset": 200, "shared_memory_byte_size": 50}
    head = {
        "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "parameters": where}],
        "outputs": [{"name": "y", "parameters": {**there, "binary_data": False}}],
    }
    status, answer = await world.infer(PAIR, head)
    assert status == 200
    told = {**there, "shared_memory_byte_size": 8}
    assert answer["outputs"] == [{"name": "y", "datatype": "FP64", "shape": [1, 1], "parameters": told}]
    assert struct.unpack("<d", thing.get(8 + 200, 8)) == (5006.0,)

    unregister = pb.SystemSharedMemoryUnregisterHttpRequest(region_name="r")
    for _ in range(2):
        assert await world.get("SystemSharedMemoryUnregister", unregister) == (200, {})
    status, answer = await world.infer(PAIR, head)
    assert (status, 'is registered as "r"' in answer["error"]) == (404, True)
    await world.oip.SystemSharedMemoryUnregister(memory_pb.SystemSharedMemoryUnregisterRequest(), timeout=5)


@pytest.mark.rpc(OIP + "SystemSharedMemoryStatus", "error")
@pytest.mark.rpc(OIP + "SystemSharedMemoryRegister", "error")
async def test_wrong_regions_over_grpc(world: World, thing: SharedObject) -> None:
    await register(world, thing)
    asked: list[tuple[str, Message, str]] = [
        ("SystemSharedMemoryStatus", memory_pb.SystemSharedMemoryStatusRequest(name="q"), "REGION_NOT_FOUND"),
        (
            "SystemSharedMemoryRegister",
            memory_pb.SystemSharedMemoryRegisterRequest(name="r", key=thing.key, byte_size=999),
            "REGION_EXISTS",
        ),
    ]
    for method, request, reason in asked:
        error = await error_of(getattr(world.oip, method)(request, timeout=5))
        assert reason_of(error) == f"SHARED_MEMORY_{reason}"
    no_room, double, stranger, long = pair_in_region(), mirror_infer(), pair_in_region(), pair_in_region()
    put_in(no_room.outputs.add(name="y"), 7)
    put_in(double.inputs[0], 2)
    put_in(stranger.inputs[0], 16, region="q")
    put_in(long.inputs[0], 17)
    mistakes = [
        (no_room, "INVALID_FIELD", "outputs.y.parameters.shared_memory_byte_size: want 8 or more, got 7"),
        (double, "INVALID_FIELD", "want 13 entries, one for each input that is in no region, got 14"),
        (stranger, "SHARED_MEMORY_REGION_NOT_FOUND", 'registered as "q"'),
        (long, "INVALID_TENSORS", "17"),
    ]
    for request, reason, text in mistakes:
        error = await error_of(world.oip.ModelInfer(request, timeout=5))
        assert (reason_of(error), text in (error.details() or "")) == (reason, True), error.details()


@pytest.mark.rpc(HTTP + "SystemSharedMemoryStatus", "error")
@pytest.mark.rpc(HTTP + "SystemSharedMemoryRegister", "error")
async def test_wrong_regions_over_rest(world: World, thing: SharedObject) -> None:
    status, body = await world.get("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusHttpRequest(region_name="q"))
    assert (status, 'is registered as "q"' in body["error"]) == (404, True)
    for text, want in (('{"key": "/a/b", "byte_size": 1}', "key: want"), ('{"kez": "/a"}', 'did you mean "key"?')):
        asked = pb.SystemSharedMemoryRegisterHttpRequest(region_name="r", body=HttpBody(data=text.encode()))
        status, body = await world.get("SystemSharedMemoryRegister", asked)
        assert (status, want in body["error"]) == (400, True)
    await register(world, thing)
    where = {"shared_memory_region": "r", "shared_memory_byte_size": 16}
    both = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "parameters": where, "data": [1, 2]}]}
    status, body = await world.infer(PAIR, both)
    assert (status, "got both" in body["error"]) == (400, True)


@pytest.mark.rpc(OIP + "SystemSharedMemoryUnregister", "error")
@pytest.mark.rpc(HTTP + "SystemSharedMemoryUnregister", "error")
async def test_by_default_it_is_off_and_the_setting_is_named(idle_world: World, thing: SharedObject) -> None:
    world = idle_world
    await world.start_router()
    metadata = await world.oip.ServerMetadata(oip_pb.ServerMetadataRequest(), timeout=5)
    assert "system_shared_memory" not in metadata.extensions
    calls: list[Any] = [
        world.oip.SystemSharedMemoryUnregister(memory_pb.SystemSharedMemoryUnregisterRequest(), timeout=5),
        world.oip.ModelInfer(pair_in_region(), timeout=5),
    ]
    for call in calls:
        error = await error_of(call)
        assert (error.code().name, reason_of(error)) == ("UNIMPLEMENTED", "NOT_IMPLEMENTED")
        assert "INTERLOCK_SYSTEM_SHARED_MEMORY_BYTES" in (error.details() or "")
    status, body = await world.get("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterHttpRequest())
    assert (status, "INTERLOCK_SYSTEM_SHARED_MEMORY_BYTES" in body["error"]) == (501, True)


async def test_metadata_lists_what_is_on(world: World) -> None:
    metadata = await world.oip.ServerMetadata(oip_pb.ServerMetadataRequest(), timeout=5)
    assert "system_shared_memory" in metadata.extensions
