"""Versions that must not become READY, and the live version that does not notice."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from interlock.inference.v1 import inference_service_pb2 as pb
from interlock.registry.v1.deployment_pb2 import DEPLOYMENT_STATE_FAILED, DEPLOYMENT_STATE_READY, DEVICE_CLASS_GPU
from interlock.registry.v1.model_version_pb2 import GoldenRow
from interlock.types.v1.tensor_pb2 import DataType, Tensor

from tests.fakes import inference_models as models
from tests.fakes.inference_registry import FakeRegistry, spec
from tests.integration.inference.conftest import Running
from tests.integration.inference.stream import open_stream, row

X, Y = spec("x", "FP32", 2), spec("y", "FP32", 2)


def golden(want: float) -> GoldenRow:
    def tensor(name: str, value: float) -> Tensor:
        return Tensor(
            name=name, data_type=DataType.DATA_TYPE_FP32, shape=[1, 2], data=np.full((1, 2), value, "<f4").tobytes()
        )

    return GoldenRow(inputs=[tensor("x", 3.0)], outputs=[tensor("y", want)])


def clean(message: str) -> bool:
    return not any(mark in message for mark in ("/", "\\", "Traceback", "Error", "::", "onnxruntime"))


@pytest.mark.parametrize(
    ("bad", "want"),
    [
        (({"model.onnx": b"this is no model at all"}, [X], [Y], []), "is no ONNX model"),
        (({"model.onnx": b""}, [X], [Y], []), "is no ONNX model"),
        (({"model.onnx": models.oracle()[:-20]}, [X], [Y], []), "no ONNX model"),
        (({"model.onnx": models.oracle()}, [spec("z", "FP32", 2)], [Y], []), "want inputs ['z'], got ['x']"),
        (({"model.onnx": models.oracle()}, [spec("x", "INT64", 2)], [Y], []), "want INT64, got FP32"),
        (({"model.onnx": models.oracle()}, [spec("x", "FP32", 2, 2)], [Y], []), "want shape [-1, 2, 2], got [-1, 2]"),
        (({"model.onnx": models.oracle()}, [spec("x", "FP32", 3)], [Y], []), "want shape [-1, 3], got [-1, 2]"),
        (
            ({"model.onnx": models.oracle()}, [X], [spec("label", "INT64")], []),
            "want output 'label', got outputs ['y']",
        ),
        (({"model.onnx": models.oracle()}, [X], [Y], [golden(7.5)]), "golden row 0, output 'y'"),
        (({"model.onnx": models.foreign_operator()}, [X], [Y], []), "domain 'com.example'"),
        (
            (
                {"model.onnx": models.external_weights("../w.bin", np.ones(2, "<f4")), "w.bin": b"12345678"},
                [X],
                [Y],
                [],
            ),
            "not one of the version's files",
        ),
    ],
    ids=["text", "empty", "cut", "name", "dtype", "rank", "size", "output", "golden", "operator", "external"],
)
async def test_a_version_that_cannot_be_loaded_is_failed_and_disturbs_nobody(
    running: Running, put_oracle: Callable[..., None], bad: tuple[Any, ...], want: str
) -> None:
    files, inputs, outputs, rows = bad
    put_oracle()
    await running.ready("oracle/1")
    async with open_stream(running.own, "oracle", "1") as stream:
        running.registry.put_version("bad/1", files, inputs, outputs, rows)
        running.registry.deploy("bad", "bad/1")
        state = await running.wait_state("bad/1", pb.LOAD_STATE_FAILED, pb.LOAD_STATE_READY)
        assert state.state == pb.LOAD_STATE_FAILED
        assert want in state.message
        assert clean(state.message), state.message
        assert await stream.infer(row(4)) == [(row(4) * 2 + 1).tobytes()]
    health = running.serving.runtime.health.serving
    assert (health["model/bad/1"], health["model/oracle/1"], health[""]) == (False, True, True)


async def test_a_deployment_that_wants_a_device_which_is_not_here_is_failed_by_name(
    running: Running, registry: FakeRegistry, put_oracle: Callable[..., None]
) -> None:
    put_oracle("oracle/1", device_class=DEVICE_CLASS_GPU)
    put_oracle("oracle/2")
    await running.ready("oracle/2")
    async with asyncio.timeout(10):
        while len(registry.reports) < 2 or registry.reports["oracle-2"].state != DEPLOYMENT_STATE_READY:
            await asyncio.sleep(0.02)
    told = registry.reports["oracle-1"]
    assert told.state == DEPLOYMENT_STATE_FAILED
    assert told.message == "the deployment wants DEVICE_CLASS_GPU, this replica has DEVICE_CLASS_CPU only"
    assert await running.state("oracle/1") is None
    registry.deploy("on-cpu", "oracle/1")
    await running.ready("oracle/1")


async def test_golden_rows_that_come_out_right_let_a_version_serve(running: Running, registry: FakeRegistry) -> None:
    registry.put_version("good/1", {"model.onnx": models.oracle()}, [X], [Y], [golden(7.0), golden(7.00001)])
    registry.deploy("good", "good/1")
    await running.ready("good/1")


async def test_weights_in_a_file_of_the_version_are_loaded(running: Running, registry: FakeRegistry) -> None:
    weights = np.array([10.0, 20.0], "<f4")
    files = {"model.onnx": models.external_weights("w.bin", weights), "w.bin": weights.tobytes()}
    registry.put_version("heavy/1", files, [X], [Y])
    registry.deploy("heavy", "heavy/1")
    await running.ready("heavy/1")
    async with open_stream(running.own, "heavy", "1") as stream:
        assert await stream.infer(row(1)) == [(row(1) + weights).tobytes()]


async def test_a_corrupt_artifact_is_fetched_again_once_and_then_failed(
    running: Running, registry: FakeRegistry
) -> None:
    content = models.oracle()
    registry.put_version("oracle/1", {"model.onnx": content}, [X], [Y])
    digest = registry.put_artifact(content)
    registry.served[digest] = content[:40] + b"\x00" + content[41:]
    registry.deploy("oracle", "oracle/1")
    state = await running.wait_state("oracle/1", pb.LOAD_STATE_FAILED)
    assert "corrupt" in state.message
    assert clean(state.message)
    assert registry.downloads[:2] == [(digest, 0), (digest, 0)]
    registry.served.clear()
    await running.wait_state("oracle/1", pb.LOAD_STATE_READY)


async def test_a_copy_that_rots_on_the_disk_is_fetched_again(
    running: Running, registry: FakeRegistry, put_oracle: Callable[..., None]
) -> None:
    put_oracle()
    await running.ready("oracle/1")
    (blob,) = running.serving.runtime.settings.state_dir.glob("inference/artifacts/sha256/??/*")
    registry.remove("deployments/oracle-1")
    await running.wait_gone("oracle/1")
    blob.write_bytes(blob.read_bytes()[:-1] + b"\x01")
    registry.deploy("oracle-1", "oracle/1")
    await running.ready("oracle/1")
    assert len(registry.downloads) == 2


async def test_a_download_that_is_cut_off_goes_on_where_it_stopped(running: Running, registry: FakeRegistry) -> None:
    weights = np.ones(50_000, "<f4")
    files = {"model.onnx": models.external_weights("w.bin", weights), "w.bin": weights.tobytes()}
    registry.cut_after_bytes = 100_000
    registry.put_version("heavy/1", files, [spec("x", "FP32", 50_000)], [spec("y", "FP32", 50_000)])
    registry.deploy("heavy", "heavy/1")
    await running.ready("heavy/1")
    assert [offset for _, offset in registry.downloads[-3:]] == [0, 100_000, 200_000][-3:] or [
        offset for _, offset in registry.downloads[-2:]
    ] == [0, 100_000]
