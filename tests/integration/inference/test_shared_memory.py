"""Tensors in system shared memory at inference itself."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as oip
from inference import shared_memory_pb2 as memory_pb

from tests.fakes import inference_models
from tests.fakes.inference_registry import FakeRegistry, spec
from tests.fakes.shared_object import SharedObject, shared_object
from tests.integration.inference.conftest import Running, Start
from tests.integration.inference.test_oip_surface import reason

OIP = "inference.GRPCInferenceService/"
WORDS = ("a", "zürich", "")
BYTES = b"".join(len(word.encode()).to_bytes(4, "little") + word.encode() for word in WORDS)


@pytest.fixture
def thing() -> Iterator[SharedObject]:
    with shared_object(1000) as found:
        yield found


@pytest.fixture
async def running(start: Start, registry: FakeRegistry) -> AsyncIterator[Running]:
    async with registry.listening() as address, start(address, system_shared_memory_bytes=10_000) as found:
        yield found


def put_in(tensor: Any, size: int, offset: int = 0) -> None:
    tensor.parameters["shared_memory_region"].string_param = "r"
    tensor.parameters["shared_memory_byte_size"].uint64_param = size
    tensor.parameters["shared_memory_offset"].int64_param = offset


def oracle_in_region() -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name="oracle", id="abc")
    put_in(request.inputs.add(name="x", datatype="FP32", shape=[3, 2]), 24)
    return request


@pytest.mark.rpc(OIP + "SystemSharedMemoryStatus", "happy")
@pytest.mark.rpc(OIP + "SystemSharedMemoryRegister", "happy")
@pytest.mark.rpc(OIP + "SystemSharedMemoryUnregister", "happy")
async def test_equal_requests_see_what_the_region_holds_now(
    running: Running, put_oracle: Callable[..., None], thing: SharedObject
) -> None:
    put_oracle()
    await running.ready("oracle/1")
    asked = memory_pb.SystemSharedMemoryRegisterRequest(name="r", key=thing.key, byte_size=1000)
    await running.oip.SystemSharedMemoryRegister(asked)
    status = await running.oip.SystemSharedMemoryStatus(memory_pb.SystemSharedMemoryStatusRequest())
    assert [(region.key, region.byte_size) for region in status.regions.values()] == [(thing.key, 1000)]
    for first in (0, 10, 0):
        rows = np.arange(first, first + 6, dtype="<f4")
        thing.put(rows.tobytes())
        answer = await running.infer(oracle_in_region())
        assert (answer.id, answer.raw_output_contents[0]) == ("abc", (rows * 2 + 1).tobytes())
    await running.oip.SystemSharedMemoryUnregister(memory_pb.SystemSharedMemoryUnregisterRequest(name="r"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await running.infer(oracle_in_region())
    assert reason(refused.value) == "SHARED_MEMORY_REGION_NOT_FOUND"


async def test_texts_go_in_and_out_through_a_region_beside_plain_tensors(
    running: Running, registry: FakeRegistry, thing: SharedObject
) -> None:
    inputs = [spec("word", "BYTES", 1), spec("n", "INT64", 1)]
    outputs = [spec("echo", "BYTES", 1), spec("m", "INT64", 1)]
    registry.put_version("text/1", {"model.onnx": inference_models.text()}, inputs, outputs)
    registry.deploy("text", "text/1")
    await running.ready("text/1")
    await running.oip.SystemSharedMemoryRegister(
        memory_pb.SystemSharedMemoryRegisterRequest(name="r", key=thing.key, byte_size=1000)
    )
    thing.put(BYTES, 100)
    numbers = np.arange(3, dtype="<i8").tobytes()
    request = oip.ModelInferRequest(model_name="text", raw_input_contents=[numbers])
    put_in(request.inputs.add(name="word", datatype="BYTES", shape=[3, 1]), len(BYTES), 100)
    request.inputs.add(name="n", datatype="INT64", shape=[3, 1])
    put_in(request.outputs.add(name="echo"), 200, 500)
    request.outputs.add(name="m")
    answer = await running.infer(request)
    assert [output.name for output in answer.outputs] == ["echo", "m"]
    assert list(answer.raw_output_contents) == [b"", numbers]
    assert answer.outputs[0].parameters["shared_memory_byte_size"].int64_param == len(BYTES)
    assert thing.get(500, 200) == BYTES + bytes(200 - len(BYTES))

    # The server goes on, whatever becomes of the object.
    thing.cut(0)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await running.infer(request)
    assert reason(refused.value) == "SHARED_MEMORY_UNUSABLE"
    assert (await running.oip.ServerLive(oip.ServerLiveRequest())).live
