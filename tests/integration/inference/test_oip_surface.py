"""The rest of the Open Inference Protocol: metadata, readiness, counts, every datatype, and what is not offered."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status
from inference import grpc_service_pb2 as oip
from inference import model_config_pb2 as config_pb
from inference import repository_pb2 as repository_pb
from inference import server_setting_pb2 as setting_pb
from inference import shared_memory_pb2 as memory_pb
from inference import statistics_pb2 as statistics_pb
from onnx import TensorProto

from tests.fakes import inference_models as models
from tests.fakes.inference_registry import FakeRegistry, spec
from tests.integration.inference.conftest import Running

SERVICE = "inference.GRPCInferenceService"


def rpc(method: str, case: str) -> pytest.MarkDecorator:
    return pytest.mark.rpc(f"{SERVICE}/{method}", case)


def reason(error: grpc.aio.AioRpcError) -> str:
    info = ErrorInfo()
    status = rpc_status.from_call(error)
    return next((info.reason for detail in status.details if detail.Unpack(info)), "")


@rpc("ServerLive", "happy")
@rpc("ServerReady", "happy")
@rpc("ServerMetadata", "happy")
@rpc("ModelReady", "happy")
@rpc("ModelMetadata", "happy")
@rpc("ModelConfig", "happy")
@rpc("ModelStatistics", "happy")
@rpc("RepositoryIndex", "happy")
async def test_what_the_server_says_of_itself(running: Running, put_oracle: Callable[..., None]) -> None:
    put_oracle()
    put_oracle("oracle/10")
    await running.ready("oracle/1")
    await running.ready("oracle/10")
    assert (await running.oip.ServerLive(oip.ServerLiveRequest())).live
    assert (await running.oip.ServerReady(oip.ServerReadyRequest())).ready
    metadata = await running.oip.ServerMetadata(oip.ServerMetadataRequest())
    assert metadata.name == "interlock-inference"
    assert "statistics" in metadata.extensions
    assert (await running.oip.ModelReady(oip.ModelReadyRequest(name="oracle"))).ready
    model = await running.oip.ModelMetadata(oip.ModelMetadataRequest(name="oracle"))
    assert (model.name, list(model.versions), model.platform) == ("oracle", ["1", "10"], "onnx_onnxv1")
    assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [("x", "FP32", [-1, 2])]
    assert not model.properties
    config = (await running.oip.ModelConfig(config_pb.ModelConfigRequest(name="oracle"))).config
    assert (config.max_batch_size, list(config.input[0].dims)) == (8, [2])
    assert config.input[0].data_type == config_pb.TYPE_FP32
    every = await running.oip.ModelStatistics(statistics_pb.ModelStatisticsRequest())
    assert [(each.name, each.version) for each in every.model_stats] == [("oracle", "1"), ("oracle", "10")]
    assert every.model_stats[0].memory_usage[0].byte_size > 1_000_000
    index = await running.oip.RepositoryIndex(repository_pb.RepositoryIndexRequest(ready=True))
    assert [(each.version, each.state) for each in index.models] == [("1", "READY"), ("10", "READY")]


async def test_an_empty_version_is_the_highest_ready_one(running: Running, put_oracle: Callable[..., None]) -> None:
    put_oracle("oracle/9")
    put_oracle("oracle/10")
    await running.ready("oracle/9")
    await running.ready("oracle/10")
    request = oip.ModelInferRequest(model_name="oracle", raw_input_contents=[bytes(8)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    assert (await running.infer(request)).model_version == "10"
    request.model_version = "9"
    assert (await running.infer(request)).model_version == "9"


@rpc("ModelStreamInfer", "happy")
@rpc("ModelStreamInfer", "error")
async def test_a_stream_answers_every_request_and_tells_a_failure_in_its_place(
    running: Running, put_oracle: Callable[..., None]
) -> None:
    put_oracle()
    await running.ready("oracle/1")
    requests = []
    for at in range(20):
        model = "nobody" if at == 7 else "oracle"
        request = oip.ModelInferRequest(model_name=model, id=str(at), raw_input_contents=[bytes(8)])
        request.inputs.add(name="x", datatype="FP32", shape=[1, 3 if at == 9 else 2])
        requests.append(request)
    answers = {one.infer_response.id: one async for one in running.oip.ModelStreamInfer(iter(requests), timeout=10)}
    assert sorted(answers, key=int) == [str(at) for at in range(20)]
    assert {number for number, one in answers.items() if one.error_message} == {"7", "9"}
    assert "nobody" in answers["7"].error_message
    assert all(one.infer_response.parameters["triton_final_response"].bool_param for one in answers.values())
    assert answers["0"].infer_response.model_version == "1"
    assert "streaming" in (await running.oip.ServerMetadata(oip.ServerMetadataRequest())).extensions


@rpc("ModelReady", "error")
@rpc("ModelMetadata", "error")
@rpc("ModelConfig", "error")
@rpc("ModelStatistics", "error")
@pytest.mark.parametrize(
    ("method", "request_type"),
    [
        ("ModelReady", oip.ModelReadyRequest),
        ("ModelMetadata", oip.ModelMetadataRequest),
        ("ModelConfig", config_pb.ModelConfigRequest),
        ("ModelStatistics", statistics_pb.ModelStatisticsRequest),
    ],
)
async def test_an_unknown_model_is_not_found(running: Running, method: str, request_type: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await getattr(running.oip, method)(request_type(name="nobody"))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert reason(refused.value) == "VERSION_NOT_LOADED"


@rpc("RepositoryModelLoad", "error")
@rpc("RepositoryModelUnload", "error")
async def test_the_registry_alone_decides(running: Running) -> None:
    for call, request in (
        (running.oip.RepositoryModelLoad, repository_pb.RepositoryModelLoadRequest(model_name="oracle")),
        (running.oip.RepositoryModelUnload, repository_pb.RepositoryModelUnloadRequest(model_name="oracle")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(request)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert reason(refused.value) == "REGISTRY_DECIDES"


@rpc("SystemSharedMemoryStatus", "error")
@rpc("SystemSharedMemoryRegister", "error")
@rpc("SystemSharedMemoryUnregister", "error")
@rpc("CudaSharedMemoryStatus", "error")
@rpc("CudaSharedMemoryRegister", "error")
@rpc("CudaSharedMemoryUnregister", "error")
@rpc("TraceSetting", "error")
@rpc("LogSettings", "error")
async def test_what_is_not_offered_says_so(running: Running) -> None:
    calls = [
        running.oip.SystemSharedMemoryStatus(memory_pb.SystemSharedMemoryStatusRequest()),
        running.oip.SystemSharedMemoryRegister(memory_pb.SystemSharedMemoryRegisterRequest()),
        running.oip.SystemSharedMemoryUnregister(memory_pb.SystemSharedMemoryUnregisterRequest()),
        running.oip.CudaSharedMemoryStatus(memory_pb.CudaSharedMemoryStatusRequest()),
        running.oip.CudaSharedMemoryRegister(memory_pb.CudaSharedMemoryRegisterRequest()),
        running.oip.CudaSharedMemoryUnregister(memory_pb.CudaSharedMemoryUnregisterRequest()),
        running.oip.TraceSetting(setting_pb.TraceSettingRequest()),
        running.oip.LogSettings(setting_pb.LogSettingsRequest()),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert reason(refused.value) == "NOT_IMPLEMENTED"


TYPED = {
    "BOOL": ("bool_contents", [True, False]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-(2**15), 2**15 - 1]),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1]),
    "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [0, 65535]),
    "UINT32": ("uint_contents", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 2**64 - 1]),
    "FP32": ("fp32_contents", [-0.5, float("inf")]),
    "FP64": ("fp64_contents", [1e300, float("nan")]),
    "BYTES": ("bytes_contents", ["zürich".encode(), b""]),
}
RAW = {
    "BOOL": b"\x01\x00",
    "FP16": np.array([1.5, -2], "<f2").tobytes(),
    "BF16": b"\x80\x3f\x00\xc0",
    "FP32": np.array([-0.5, np.inf], "<f4").tobytes(),
    "FP64": np.array([1e300, np.nan], "<f8").tobytes(),
    "BYTES": b"\x07\x00\x00\x00" + "zürich".encode() + b"\x00\x00\x00\x00",
    **{
        kind: np.array(TYPED[kind][1], f"<{code}").tobytes()
        for kind, code in {
            "INT8": "i1",
            "INT16": "i2",
            "INT32": "i4",
            "INT64": "i8",
            "UINT8": "u1",
            "UINT16": "u2",
            "UINT32": "u4",
            "UINT64": "u8",
        }.items()
    },
}
ONNX = {"FP16": "FLOAT16", "BF16": "BFLOAT16", "FP32": "FLOAT", "FP64": "DOUBLE", "BYTES": "STRING"}


async def test_every_datatype_travels_there_and_back(running: Running, registry: FakeRegistry) -> None:
    for kind in RAW:
        content = models.identity(getattr(TensorProto, ONNX.get(kind, kind)))
        registry.put_version(f"{kind}/1", {"model.onnx": content}, [spec("x", kind, 2)], [spec("y", kind, 2)])
    for kind, raw in RAW.items():
        registry.deploy(kind, f"{kind}/1", max_batch_size=2)
        await running.ready(f"{kind}/1")
        request = oip.ModelInferRequest(model_name=kind)
        tensor = request.inputs.add(name="x", datatype=kind, shape=[1, 2])
        if kind in TYPED:
            field, values = TYPED[kind]
            getattr(tensor.contents, field).extend(values)
            assert (await running.infer(request)).raw_output_contents[0] == raw
            tensor.ClearField("contents")
        request.raw_input_contents.append(raw)
        response = await running.infer(request)
        assert response.outputs[0].datatype == kind
        assert response.raw_output_contents[0] == raw
        registry.remove(f"deployments/{kind}")
        await running.wait_gone(f"{kind}/1")


async def test_a_typed_value_outside_its_datatype_is_named(running: Running, registry: FakeRegistry) -> None:
    registry.put_version(
        "small/1", {"model.onnx": models.identity(TensorProto.INT8)}, [spec("x", "INT8", 2)], [spec("y", "INT8", 2)]
    )
    registry.deploy("small", "small/1")
    await running.ready("small/1")
    request = oip.ModelInferRequest(model_name="small")
    request.inputs.add(name="x", datatype="INT8", shape=[1, 2]).contents.int_contents.extend([1, 128])
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await running.infer(request)
    assert "want INT8 values from -128 to 127, got 128" in (refused.value.details() or "")


async def test_the_timeout_parameter_shortens_the_deadline(running: Running, registry: FakeRegistry) -> None:
    registry.put_version("looper/1", {"model.onnx": models.looper()}, [spec("x", "INT64", 1)], [spec("y", "INT64", 1)])
    registry.deploy("looper", "looper/1")
    await running.ready("looper/1")
    request = oip.ModelInferRequest(model_name="looper", raw_input_contents=[np.array([10**15], "<i8").tobytes()])
    request.inputs.add(name="x", datatype="INT64", shape=[1, 1])
    request.parameters["timeout"].int64_param = 200_000
    with pytest.raises(grpc.aio.AioRpcError) as late:
        async with asyncio.timeout(5):
            await running.infer(request, limit_s=30)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_metrics_name_versions_of_the_registry_only(
    running: Running, registry: FakeRegistry, put_oracle: Callable[..., None]
) -> None:
    put_oracle()
    await running.ready("oracle/1")
    for model in ("oracle", "nobody"):
        request = oip.ModelInferRequest(model_name=model, raw_input_contents=[bytes(8)])
        request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
        await asyncio.gather(running.infer(request), return_exceptions=True)

    def series() -> set[str]:
        return {
            sample.labels["model"]
            for family in running.serving.runtime.registry.collect()
            for sample in family.samples
            if "model" in sample.labels
        }

    assert series() == {"oracle"}
    value = running.serving.runtime.registry.get_sample_value
    labels = {"model": "oracle", "version": "1"}
    assert value("interlock_inference_batch_rows_count", labels) == 1
    assert value("interlock_inference_queue_seconds_count", labels) == 1
    registry.remove("deployments/oracle-1")
    await running.wait_gone("oracle/1")
    assert series() == set()
