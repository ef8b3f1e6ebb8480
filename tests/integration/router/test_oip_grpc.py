"""inference.GRPCInferenceService at the router."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from inference import grpc_service_pb2 as oip_pb
from inference import repository_pb2

from services.router.convert.oip import infer_from_proto
from tests.fakes.router_models import FLIGHT, MIRROR, MIRROR_TYPES, PAIR
from tests.fakes.router_world import World, error_of, eventually, reason_of

OIP = "inference.GRPCInferenceService/"
Change = Callable[[oip_pb.ModelInferRequest], None]


def pair_infer(rows: int = 1, version: str = "") -> oip_pb.ModelInferRequest:
    request = oip_pb.ModelInferRequest(model_name=PAIR, id="mine", model_version=version)
    request.inputs.add(name="x", datatype="FP64", shape=[rows, 2])
    request.raw_input_contents.append(struct.pack(f"<{2 * rows}d", *range(2 * rows)))
    return request


TWO_ELEMENTS: dict[str, tuple[bytes, list[Any] | None]] = {
    "BOOL": (b"\x01\x00", [True, False]),
    "UINT8": (b"\x00\xff", [0, 255]),
    "UINT16": (struct.pack("<2H", 0, 65535), [0, 65535]),
    "UINT32": (struct.pack("<2I", 0, 2**32 - 1), [0, 2**32 - 1]),
    "UINT64": (struct.pack("<2Q", 0, 2**64 - 1), [0, 2**64 - 1]),
    "INT8": (struct.pack("<2b", -128, 127), [-128, 127]),
    "INT16": (struct.pack("<2h", -(2**15), 2**15 - 1), [-(2**15), 2**15 - 1]),
    "INT32": (struct.pack("<2i", -(2**31), 2**31 - 1), [-(2**31), 2**31 - 1]),
    "INT64": (struct.pack("<2q", -(2**63), 2**63 - 1), [-(2**63), 2**63 - 1]),
    "FP16": (struct.pack("<2e", -1.5, 65504), None),
    "FP32": (struct.pack("<2f", -1.5, 0.25), [-1.5, 0.25]),
    "FP64": (struct.pack("<2d", -1.5, 1e300), [-1.5, 1e300]),
    "BF16": (struct.pack("<2f", -1.5, 2.0)[2:4] + struct.pack("<f", 2.0)[2:], None),
    "BYTES": (b"\x00\x00\x00\x00\x03\x00\x00\x00\xff\x00a", [b"", b"\xff\x00a"]),
}
CONTENTS = {
    "BOOL": "bool_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


def mirror_infer() -> oip_pb.ModelInferRequest:
    request = oip_pb.ModelInferRequest(model_name=MIRROR)
    for name in MIRROR_TYPES:
        request.inputs.add(name=f"in_{name}", datatype=name, shape=[1, 2])
        request.raw_input_contents.append(TWO_ELEMENTS[name][0])
    return request


@pytest.mark.rpc(OIP + "ModelInfer", "happy")
async def test_rows_go_through_raw_and_the_id_comes_back(world: World) -> None:
    answer = await world.oip.ModelInfer(pair_infer(3), timeout=5)
    assert (answer.model_name, answer.model_version, answer.id) == (PAIR, "1", "mine")
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in answer.outputs] == [("y", "FP64", [3, 1])]
    assert struct.unpack("<3d", answer.raw_output_contents[0]) == (1.0, 2003.0, 4005.0)
    assert answer.parameters["variant"].string_param == "1"
    assert answer.parameters["served_by"].string_param == "deployments/pair-1"
    assert answer.parameters["config_epoch"].int64_param == 1
    assert not answer.outputs[0].HasField("contents")


async def test_every_element_type_survives_the_whole_way(world: World) -> None:
    answer = await world.oip.ModelInfer(mirror_infer(), timeout=5)
    got = {tensor.name: raw for tensor, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)}
    assert got == {f"out_{name}": TWO_ELEMENTS[name][0] for name in MIRROR_TYPES}


@pytest.mark.parametrize("name", CONTENTS)
async def test_typed_contents_become_the_same_bytes(world: World, name: str) -> None:
    tensor = oip_pb.ModelInferRequest.InferInputTensor(name="t", datatype=name, shape=[1, 2])
    getattr(tensor.contents, CONTENTS[name]).extend(TWO_ELEMENTS[name][1] or [])
    request = oip_pb.ModelInferRequest(model_name=MIRROR, inputs=[tensor])
    assert infer_from_proto(request).inputs[0].data == TWO_ELEMENTS[name][0]


async def test_typed_contents_are_served(world: World) -> None:
    request = oip_pb.ModelInferRequest(model_name=PAIR)
    request.inputs.add(name="x", datatype="FP64", shape=[1, 2]).contents.fp64_contents.extend([2, 7])
    answer = await world.oip.ModelInfer(request, timeout=5)
    assert struct.unpack("<d", answer.raw_output_contents[0]) == (2007.0,)


async def test_a_user_is_sticky_and_a_version_pins(world: World) -> None:
    request = pair_infer()
    request.parameters["user_id"].string_param = "u-42"
    assert (await world.oip.ModelInfer(request, timeout=5)).parameters["assignment"].string_param == "sticky"
    pinned = await world.oip.ModelInfer(pair_infer(version="1"), timeout=5)
    assert pinned.parameters["assignment"].string_param == "pinned"
    assert (await world.oip.ModelInfer(pair_infer(), timeout=5)).parameters["assignment"].string_param == "per_request"


async def test_requested_outputs_are_the_only_ones(world: World) -> None:
    request = mirror_infer()
    request.outputs.add(name="out_INT8")
    request.outputs.add(name="out_BYTES")
    answer = await world.oip.ModelInfer(request, timeout=5)
    assert sorted(tensor.name for tensor in answer.outputs) == ["out_BYTES", "out_INT8"]


def _changed(change: str) -> oip_pb.ModelInferRequest:
    request = pair_infer()
    CHANGES[change](request)
    return request


def _set_shape(*shape: int) -> Change:
    def change(request: oip_pb.ModelInferRequest) -> None:
        request.inputs[0].shape[:] = shape

    return change


def _set_datatype(datatype: str) -> Change:
    def change(request: oip_pb.ModelInferRequest) -> None:
        request.inputs[0].datatype = datatype

    return change


def _set_raw(*raw: bytes) -> Change:
    def change(request: oip_pb.ModelInferRequest) -> None:
        request.raw_input_contents[:] = raw

    return change


def _no_rows(request: oip_pb.ModelInferRequest) -> None:
    request.inputs[0].shape[:] = [0, 2]
    request.raw_input_contents[0] = b""


def _rename(request: oip_pb.ModelInferRequest) -> None:
    request.inputs[0].name = "xx"


def _repeat(times: int) -> Change:
    def change(request: oip_pb.ModelInferRequest) -> None:
        request.inputs.extend([request.inputs[0]] * times)
        request.raw_input_contents.extend([request.raw_input_contents[0]] * times)

    return change


def _no_tensors(request: oip_pb.ModelInferRequest) -> None:
    del request.inputs[:], request.raw_input_contents[:]


def _raw_missing(request: oip_pb.ModelInferRequest) -> None:
    request.inputs.append(request.inputs[0])


def _both_forms(request: oip_pb.ModelInferRequest) -> None:
    request.inputs[0].contents.fp64_contents.extend([1, 2])


def _output_twice(request: oip_pb.ModelInferRequest) -> None:
    request.outputs.add(name="y")
    request.outputs.add(name="y")


def _classification(request: oip_pb.ModelInferRequest) -> None:
    request.outputs.add(name="y").parameters["classification"].int64_param = 3


CHANGES: dict[str, Change] = {
    "datatype": _set_datatype("FP32"),
    "no datatype": _set_datatype("FLOAT"),
    "shape": _set_shape(1, 3),
    "rank": _set_shape(2),
    "no rows": _no_rows,
    "negative": _set_shape(-1, 2),
    "huge": _set_shape(2**62, 2),
    "overflow": _set_shape(2**31, 2**33),
    "many dimensions": _set_shape(*[1] * 10_000),
    "short": _set_raw(b"1234567"),
    "long": _set_raw(bytes(17)),
    "name": _rename,
    "twice": _repeat(1),
    "none": _no_tensors,
    "raw missing": _raw_missing,
    "both": _both_forms,
    "too many": _repeat(100),
    "output twice": _output_twice,
    "classification": _classification,
}


@pytest.mark.rpc(OIP + "ModelInfer", "error")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("datatype", "want the datatype FP64, got"),
        ("no datatype", "want a datatype of the protocol"),
        ("shape", "want the shape [-1,2], got [1,3]"),
        ("rank", "want the shape [-1,2], got [2]"),
        ("no rows", "want at least 1 row, got 0"),
        ("negative", "want every dimension from 0"),
        ("huge", "want every dimension from 0"),
        ("overflow", "want every dimension from 0"),
        ("many dimensions", "want at most 16 dimensions, got 10000"),
        ("short", "want 16 bytes for 2 elements of FP64, got 7"),
        ("long", "want 16 bytes for 2 elements of FP64, got 17"),
        ("name", 'did you mean "x"?'),
        ("twice", "want each input once"),
        ("none", "inputs.x: want a tensor, got nothing"),
        ("raw missing", "want 2 entries, one for each input, got 1"),
        ("both", "want no contents beside raw_input_contents"),
        ("too many", "want at most 64 tensors, got 101"),
        ("output twice", "want each output once"),
        ("classification", "not offered here"),
    ],
)
async def test_tensors_that_do_not_fit_are_refused_with_want_and_got(world: World, change: str, message: str) -> None:
    error = await error_of(world.oip.ModelInfer(_changed(change), timeout=5))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(error) == "INVALID_TENSORS"
    assert message in (error.details() or "")
    assert world.replica.items == []


async def test_broken_bytes_elements_are_refused(world: World) -> None:
    for broken in (b"\xff\xff\xff\xff", b"\x00" * 7, b"\x00" * 9, b"\x01\x00\x00\x00a\xff\xff\xff\x7f", b""):
        request = mirror_infer()
        request.raw_input_contents[MIRROR_TYPES.index("BYTES")] = broken
        error = await error_of(world.oip.ModelInfer(request, timeout=5))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, broken
        assert "inputs.in_BYTES" in (error.details() or "")


async def test_an_unknown_output_is_not_found(world: World) -> None:
    request = pair_infer()
    request.outputs.add(name="z")
    error = await error_of(world.oip.ModelInfer(request, timeout=5))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.NOT_FOUND, "OUTPUT_NOT_FOUND")
    assert error.details() == 'outputs[0].name: want one of y, got "z"'


async def test_typed_values_out_of_range_are_refused(world: World) -> None:
    request = oip_pb.ModelInferRequest(model_name=MIRROR)
    request.inputs.add(name="in_INT8", datatype="INT8", shape=[1, 2]).contents.int_contents.extend([1, 300])
    error = await error_of(world.oip.ModelInfer(request, timeout=5))
    assert "want INT8 values from -128 to 127, got 300" in (error.details() or "")


async def test_sixteen_bit_floats_have_no_typed_form(world: World) -> None:
    request = oip_pb.ModelInferRequest(model_name=MIRROR)
    request.inputs.add(name="in_FP16", datatype="FP16", shape=[1, 2]).contents.fp32_contents.extend([1, 2])
    error = await error_of(world.oip.ModelInfer(request, timeout=5))
    assert "FP16 has no typed or JSON form" in (error.details() or "")


async def test_a_user_id_that_is_no_text_is_refused(world: World) -> None:
    request = pair_infer()
    request.parameters["user_id"].int64_param = 42
    error = await error_of(world.oip.ModelInfer(request, timeout=5))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


@pytest.mark.rpc(OIP + "ServerLive", "happy")
async def test_server_live(world: World) -> None:
    assert (await world.oip.ServerLive(oip_pb.ServerLiveRequest(), timeout=5)).live


@pytest.mark.rpc(OIP + "ServerLive", "error")
async def test_server_live_with_a_malformed_message(world: World) -> None:
    await _assert_malformed(world, "ServerLive")


@pytest.mark.rpc(OIP + "ServerReady", "happy")
async def test_server_ready_follows_the_replicas(world: World) -> None:
    assert (await world.oip.ServerReady(oip_pb.ServerReadyRequest(), timeout=5)).ready

    async def server_ready() -> bool:
        return (await world.oip.ServerReady(oip_pb.ServerReadyRequest(), timeout=5)).ready

    async def model_ready(name: str) -> bool:
        return (await world.oip.ModelReady(oip_pb.ModelReadyRequest(name=name), timeout=5)).ready

    world.replica.set_ready({(PAIR, "1")})
    async with asyncio.timeout(15):
        while await model_ready(FLIGHT):
            await asyncio.sleep(0.01)
    assert await model_ready(PAIR)
    assert await server_ready(), "one model that cannot run takes nothing else down"
    world.replica.set_ready(set())
    async with asyncio.timeout(15):
        while await server_ready():
            await asyncio.sleep(0.01)


@pytest.mark.rpc(OIP + "ServerReady", "error")
async def test_server_ready_with_a_malformed_message(world: World) -> None:
    await _assert_malformed(world, "ServerReady")


@pytest.mark.rpc(OIP + "ModelReady", "happy")
async def test_model_ready(world: World) -> None:
    asked = oip_pb.ModelReadyRequest(name=FLIGHT, version="2")
    assert (await world.oip.ModelReady(asked, timeout=5)).ready


@pytest.mark.rpc(OIP + "ModelReady", "error")
async def test_model_ready_of_an_unknown_model(world: World) -> None:
    error = await error_of(world.oip.ModelReady(oip_pb.ModelReadyRequest(name="nobody"), timeout=5))
    assert error.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.rpc(OIP + "ServerMetadata", "happy")
async def test_server_metadata_lists_the_extensions(world: World) -> None:
    found = await world.oip.ServerMetadata(oip_pb.ServerMetadataRequest(), timeout=5)
    assert found.name == "interlock-router"
    assert "binary_tensor_data" in found.extensions


@pytest.mark.rpc(OIP + "ServerMetadata", "error")
async def test_server_metadata_with_a_malformed_message(world: World) -> None:
    await _assert_malformed(world, "ServerMetadata")


@pytest.mark.rpc(OIP + "ModelMetadata", "happy")
async def test_model_metadata_describes_the_tensors(world: World) -> None:
    found = await world.oip.ModelMetadata(oip_pb.ModelMetadataRequest(name=FLIGHT), timeout=5)
    assert (found.name, list(found.versions), found.platform) == (FLIGHT, ["1", "2"], "onnx_onnxv1")
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in found.inputs] == [
        ("words", "BYTES", [-1, 3]),
        ("numbers", "FP32", [-1, 4]),
    ]
    assert len(found.properties) == 0


@pytest.mark.rpc(OIP + "ModelMetadata", "error")
@pytest.mark.parametrize(("name", "version"), [("nobody", ""), (FLIGHT, "9"), ("../x", "")])
async def test_model_metadata_of_what_is_not_there(world: World, name: str, version: str) -> None:
    error = await error_of(world.oip.ModelMetadata(oip_pb.ModelMetadataRequest(name=name, version=version), timeout=5))
    assert error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)


@pytest.mark.rpc(OIP + "RepositoryIndex", "happy")
async def test_the_index_lists_versions_and_states(world: World) -> None:
    world.replica.set_ready({(PAIR, "1")})
    await eventually(lambda: world.replica.streams == 1)
    found = await world.oip.RepositoryIndex(repository_pb2.RepositoryIndexRequest(), timeout=5)
    states = {(model.name, model.version): model.state for model in found.models}
    assert set(states) == {(FLIGHT, "1"), (FLIGHT, "2"), (PAIR, "1"), (MIRROR, "1")}
    assert states[PAIR, "1"] == "READY"
    only = await world.oip.RepositoryIndex(repository_pb2.RepositoryIndexRequest(ready=True), timeout=5)
    assert all(model.state == "READY" for model in only.models)


@pytest.mark.rpc(OIP + "RepositoryIndex", "error")
async def test_the_index_with_a_malformed_message(world: World) -> None:
    await _assert_malformed(world, "RepositoryIndex")


DECIDED = [
    ("RepositoryModelLoad", repository_pb2.RepositoryModelLoadRequest(model_name=PAIR)),
    ("RepositoryModelUnload", repository_pb2.RepositoryModelUnloadRequest(model_name=PAIR)),
]


@pytest.mark.rpc(OIP + "RepositoryModelLoad", "error")
@pytest.mark.rpc(OIP + "RepositoryModelUnload", "error")
@pytest.mark.parametrize(("method", "request_"), DECIDED, ids=[name for name, _ in DECIDED])
async def test_the_registry_decides_what_is_loaded(world: World, method: str, request_: object) -> None:
    error = await error_of(getattr(world.oip, method)(request_, timeout=5))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.FAILED_PRECONDITION, "REGISTRY_DECIDES")


NOT_OFFERED = (
    "ModelConfig",
    "ModelStatistics",
    "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
    "TraceSetting",
    "LogSettings",
)


@pytest.mark.rpc(OIP + "ModelConfig", "error")
@pytest.mark.rpc(OIP + "ModelStatistics", "error")
@pytest.mark.rpc(OIP + "CudaSharedMemoryStatus", "error")
@pytest.mark.rpc(OIP + "CudaSharedMemoryRegister", "error")
@pytest.mark.rpc(OIP + "CudaSharedMemoryUnregister", "error")
@pytest.mark.rpc(OIP + "TraceSetting", "error")
@pytest.mark.rpc(OIP + "LogSettings", "error")
@pytest.mark.parametrize("method", NOT_OFFERED)
async def test_extensions_that_are_not_offered_say_so(world: World, method: str) -> None:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = world.channel.unary_unary(
        f"/inference.GRPCInferenceService/{method}"
    )
    error = await error_of(call(b"", timeout=5))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED")
    assert method in (error.details() or "")


def stream_infers(count: int) -> list[oip_pb.ModelInferRequest]:
    requests = [pair_infer() for _ in range(count)]
    for at, request in enumerate(requests):
        request.id = str(at)
    return requests


@pytest.mark.rpc(OIP + "ModelStreamInfer", "happy")
@pytest.mark.rpc(OIP + "ModelStreamInfer", "error")
async def test_a_stream_answers_every_request_and_tells_a_failure_in_its_place(world: World) -> None:
    requests = stream_infers(20)
    requests[7].model_name = "no-such-model"
    del requests[9].inputs[:], requests[9].raw_input_contents[:]
    answers = {one.infer_response.id: one async for one in world.oip.ModelStreamInfer(iter(requests), timeout=10)}
    assert sorted(answers, key=int) == [str(at) for at in range(20)]
    assert {number for number, one in answers.items() if one.error_message} == {"7", "9"}
    assert "no-such-model" in answers["7"].error_message
    assert all(one.infer_response.parameters["triton_final_response"].bool_param for one in answers.values())
    assert answers["0"].infer_response.parameters["config_epoch"].int64_param, "the answer keeps its own parameters"
    assert all(struct.unpack("<d", answers[str(at)].infer_response.raw_output_contents[0]) == (1.0,) for at in (0, 19))


async def test_a_client_may_have_a_failure_end_the_stream_instead(world: World) -> None:
    (request,) = stream_infers(1)
    request.model_name = "no-such-model"
    call = world.oip.ModelStreamInfer(timeout=10, metadata=[("triton_grpc_error", "true")])
    await call.write(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert (caught.value.code(), reason_of(caught.value)) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_a_stream_that_is_given_up_takes_back_what_it_has_asked(world: World) -> None:
    world.replica.hold = asyncio.Event()
    call = world.oip.ModelStreamInfer(_without_end(stream_infers(3)), timeout=10)
    reading = asyncio.ensure_future(anext(aiter(call)))
    await eventually(lambda: len(world.replica.items) == 3)
    call.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await eventually(lambda: len(world.replica.cancelled) == 3)


async def test_a_drain_ends_a_stream_once_it_is_answered(world: World) -> None:
    world.replica.hold = asyncio.Event()
    call = world.oip.ModelStreamInfer(_without_end(stream_infers(3)), timeout=20)
    answers = aiter(call)
    first = asyncio.ensure_future(anext(answers))
    await eventually(lambda: len(world.replica.items) == 3)
    await world.running.runtime.drain()
    world.replica.hold.set()
    got = [await first, await anext(answers), await anext(answers)]
    assert sorted(one.infer_response.id for one in got) == ["0", "1", "2"]
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await anext(answers)
    assert (ended.value.code(), reason_of(ended.value)) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")


async def _without_end(requests: list[oip_pb.ModelInferRequest]) -> AsyncIterator[oip_pb.ModelInferRequest]:
    for request in requests:
        yield request
    await asyncio.Event().wait()


async def _assert_malformed(world: World, method: str) -> None:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = world.channel.unary_unary(
        f"/inference.GRPCInferenceService/{method}"
    )
    error = await error_of(call(b"\xff\xff", timeout=5))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")
