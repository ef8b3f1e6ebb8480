"""From a deployment in the registry to an answer, over both contracts."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from inference import grpc_service_pb2 as oip
from interlock.inference.v1 import inference_service_pb2 as pb

from tests.fakes import inference_models
from tests.fakes.inference_registry import FakeRegistry, spec
from tests.integration.inference.conftest import Running
from tests.integration.inference.stream import open_call


@pytest.mark.rpc("inference.GRPCInferenceService/ModelInfer", "happy")
async def test_a_deployed_version_answers(running: Running, put_oracle: Callable[..., None]) -> None:
    put_oracle()
    await running.ready("oracle/1")
    rows = np.arange(6, dtype="<f4").reshape(3, 2)
    request = oip.ModelInferRequest(model_name="oracle", id="abc", raw_input_contents=[rows.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=[3, 2])

    response = await running.infer(request)

    assert (response.model_name, response.model_version, response.id) == ("oracle", "1", "abc")
    assert (response.outputs[0].name, response.outputs[0].datatype, list(response.outputs[0].shape)) == (
        "y",
        "FP32",
        [3, 2],
    )
    assert response.raw_output_contents[0] == (rows * 2 + 1).tobytes()
    statistics = await running.statistics("oracle")
    assert (statistics.inference_count, statistics.execution_count) == (3, 1)
    assert running.registry.reports["oracle-1"].state == 3  # DEPLOYMENT_STATE_READY
    stub: Any = health_pb2_grpc.HealthStub(running.channel)  # type: ignore[no-untyped-call]
    health = await stub.Check(health_pb2.HealthCheckRequest(service="model/oracle/1"))
    assert health.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.rpc("interlock.inference.v1.InferenceService/CoalescedInfer", "happy")
async def test_a_coalesced_message_is_answered_item_by_item(running: Running, registry: FakeRegistry) -> None:
    files = {"model.onnx": inference_models.text()}
    registry.put_version(
        "text/1",
        files,
        [spec("word", "BYTES", 1), spec("n", "INT64", 1)],
        [spec("echo", "BYTES", 1), spec("m", "INT64", 1)],
    )
    registry.deploy("text", "text/1")
    await running.ready("text/1")
    words = ["a", "zürich", "", "long" * 20]
    data = b"".join(len(w.encode()).to_bytes(4, "little") + w.encode() for w in words)
    numbers = np.arange(4, dtype="<i8").tobytes()
    batch = pb.InferBatch(ids=[7, 9], rows=[1, 3], timeouts_us=[5_000_000] * 2, outputs=["m", "echo"])
    batch.tensors.add(name="n", data_type=9, shape=[4, 1], data=numbers)
    batch.tensors.add(name="word", data_type=13, shape=[4, 1], data=data)
    for form in ("grpc", "frames"):
        stream = await open_call(running.own, form)
        await stream.write(pb.CoalescedInferRequest(open=pb.InferOpen(model="text", version="1", client_id="test")))
        opened = await stream.read()
        assert (opened.opened.max_batch_size, opened.opened.max_in_flight) == (8, 4096)
        await stream.write(pb.CoalescedInferRequest(batch=batch))

        answer = (await stream.read()).results

        assert (list(answer.ids), list(answer.rows), answer.batch_size) == ([7, 9], [1, 3], 4)
        assert not answer.failures
        assert [tensor.name for tensor in answer.tensors] == ["m", "echo"]
        assert answer.tensors[0].data == numbers
        assert answer.tensors[1].data == data
        await stream.done_writing()
        assert (await stream.code()).name == "OK"
