"""Tensors of 20 MB through every door. Requests stand half sent, answers half read, for as long as the caller likes."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from inference import grpc_service_pb2 as oip_pb
from interlock.registry.v1.model_version_pb2 import RUNTIME_ONNX, ModelFile, ModelVersion
from interlock.types.v1.signature_pb2 import Signature
from interlock.types.v1.tensor_pb2 import DATA_TYPE_FP32, TensorSpec
from onnx import TensorProto, helper
from pyqwest import Client, Headers, HTTPTransport, HTTPVersion

from tests.proof.fleet import Fleet
from tests.proof.wire import grpc_frame

MODEL: Final = "images"
_PIXELS: Final = (3, 224, 224)
_IMAGES: Final = 34  # 20.5 MB
_CHUNK_BYTES: Final = 1 << 16
_OIP: Final = "/inference.GRPCInferenceService"
_TIMEOUT_S: Final = 60
_TIMEOUT: Final = ("grpc-timeout", f"{_TIMEOUT_S}S")
_GRPC: Final = (("content-type", "application/grpc"), ("te", "trailers"), _TIMEOUT)


@dataclass(frozen=True, slots=True)
class _Door:
    """One way in: where, what is sent, and how the answer's tensor is found in the body."""

    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    decode: Callable[[bytes], bytes]


@dataclass(slots=True)
class _Phase:
    """A point that all of some requests reach before any goes on."""

    missing: int
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> None:
        self.missing -= 1
        if not self.missing:
            self.reached.set()
        await self.over.wait()

    async def hold(self, meanwhile: Callable[[], Awaitable[None]]) -> None:
        """Wait until all are here, keep them until `meanwhile` is over, and let them go on."""
        await self.reached.wait()
        await meanwhile()
        self.over.set()


async def send_everywhere(fleet: Fleet, meanwhile: Callable[[], Awaitable[None]]) -> None:
    """Send such requests to every address at once, single calls and then streams, and check each answer.

    `meanwhile` runs twice for each of the two: when half of every request is sent, and when half of every answer is read.
    """
    version = await _register(fleet)
    deployment = await fleet.client.deployments.create(MODEL, version, replicas=len(fleet.replicas), traffic_percent=0)
    await fleet.until_ready(MODEL, version)
    for doors in (_unary_doors(fleet, version) + _rest_doors(fleet, version), _stream_doors(fleet, version)):
        half_sent, half_read = _Phase(len(doors)), _Phase(len(doors))
        async with asyncio.timeout(_TIMEOUT_S), asyncio.TaskGroup() as group:
            for door in doors:
                group.create_task(_send(door, half_sent, half_read))
            group.create_task(half_sent.hold(meanwhile))
            group.create_task(half_read.hold(meanwhile))
    await fleet.remove(deployment.name)


async def _send(door: _Door, half_sent: _Phase, half_read: _Phase) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(door.body), _CHUNK_BYTES):
            if at <= len(door.body) // 2 < at + _CHUNK_BYTES:
                await half_sent.wait()
            yield door.body[at : at + _CHUNK_BYTES]

    answer = bytearray()
    async with (
        HTTPTransport(http_version=HTTPVersion.HTTP2) as transport,
        Client(transport).stream("POST", door.url, Headers(list(door.headers)), parts()) as response,
    ):
        waits = True
        async for part in response.content:
            answer += part
            if waits and len(answer) > len(door.body) // 2:
                waits = False
                await half_read.wait()
    assert not waits, f"{door.url}: {response.status} {dict(response.headers.items())} {bytes(answer[:300])!r}"
    assert door.decode(bytes(answer)) == (-_images()).tobytes(), door.url


def _unary_doors(fleet: Fleet, version: str) -> list[_Door]:
    body, services = _grpc_body(version), (*fleet.edges, *fleet.replicas)
    return [_Door(f"http://{one.address}{_OIP}/ModelInfer", _GRPC, body, _unary) for one in services]


def _stream_doors(fleet: Fleet, version: str) -> list[_Door]:
    body, services = _grpc_body(version), (*fleet.edges, *fleet.replicas)
    return [_Door(f"http://{one.address}{_OIP}/ModelStreamInfer", _GRPC, body, _streamed) for one in services]


def _rest_doors(fleet: Fleet, version: str) -> list[_Door]:
    binary = {"binary_data_size": _images().nbytes}
    tensor = {"name": "x", "datatype": "FP32", "shape": [_IMAGES, *_PIXELS], "parameters": binary}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    length = ("inference-header-content-length", str(len(head)))
    headers, body = (("content-type", "application/octet-stream"), length, _TIMEOUT), head + _images().tobytes()
    path = f"/v2/models/{MODEL}/versions/{version}/infer"
    return [_Door(f"http://{one.address}{path}", headers, body, _binary) for one in fleet.edges]


def _grpc_body(version: str) -> bytes:
    request = oip_pb.ModelInferRequest(model_name=MODEL, model_version=version)
    request.inputs.add(name="x", datatype="FP32", shape=[_IMAGES, *_PIXELS])
    request.parameters["timeout"].int64_param = _TIMEOUT_S * 1_000_000  # of a message of a stream
    request.raw_input_contents.append(_images().tobytes())
    return grpc_frame(request.SerializeToString())


def _unary(body: bytes) -> bytes:
    (raw,) = oip_pb.ModelInferResponse.FromString(body[5:]).raw_output_contents
    return raw


def _streamed(body: bytes) -> bytes:
    said = oip_pb.ModelStreamInferResponse.FromString(body[5:])
    assert not said.error_message, said.error_message
    (raw,) = said.infer_response.raw_output_contents
    return raw


def _binary(body: bytes) -> bytes:
    return body[-_images().nbytes :]


def _images() -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    return np.arange(_IMAGES * 150_528, dtype="<f4").reshape(_IMAGES, *_PIXELS)


async def _register(fleet: Fleet) -> str:
    """Register y = -x; returns the version."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, *_PIXELS]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], MODEL, values[:1], values[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = fleet.folder / "images.onnx"
    path.write_bytes(made.SerializeToString())
    await fleet.client.models.ensure(MODEL)
    artifact = await fleet.client.artifacts.upload(path)
    tensors = [TensorSpec(name=name, data_type=DATA_TYPE_FP32, shape=[-1, *_PIXELS]) for name in "xy"]
    digest = artifact.name.removeprefix("artifacts/")
    files = [ModelFile(path=path.name, digest=digest, size_bytes=path.stat().st_size)]
    signature = Signature(inputs=tensors[:1], outputs=tensors[1:])
    version = ModelVersion(runtime=RUNTIME_ONNX, files=files, signature=signature)
    registered = await fleet.client.models.register(MODEL, version)
    return registered.name.rpartition("/")[2]
