"""The corpus of `bad_input` at a real public port: REST and gRPC through Envoy, with a router's process behind it or in it."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Self

import grpc
import httpx
from inference.grpc_service_pb2 import ModelInferRequest
from inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from interlock.router.v1.router_service_pb2 import PredictRequest
from interlock.router.v1.router_service_pb2_grpc import RouterServiceStub

from services.common.settings import PORTS
from tests.fakes.ports import free_offset
from tests.fakes.router_models import FLIGHT, MIRROR, PAIR
from tests.fakes.router_world import World
from tests.proof.bad_input import IN_FLIGHT, Wrong, faults_of_json
from tests.proof.fleet import ROOT, Service

_LENGTH: Final = "inference-header-content-length"
_JSON: Final = {"content-type": "application/json"}
_PREDICT: Final = "/v1/predict"
_NOT_LENGTHS: Final = ("-1", "1e1", "x", "0x5", "99999", "9" * 40)


@dataclass(frozen=True)
class Ask:
    """A request as HTTP has it."""

    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: _JSON)


def as_http(wrong: Wrong) -> Ask | None:
    """Return the same request over REST, tensors in the binary form; None where REST has no such mistake."""
    request = wrong.request
    if isinstance(request, bytes):
        return Ask(_PREDICT, request)
    if isinstance(request, PredictRequest):
        features = {name: _plain(value) for name, value in request.features.items()}
        return Ask(_PREDICT, json.dumps({"model": request.model, "features": features}).encode())
    head, tail = _described(request), b"".join(request.raw_input_contents)
    # Bytes that belong to no input are told apart by their number only, and an empty entry has none.
    if len(request.raw_input_contents) > len(request.inputs) and not request.raw_input_contents[-1]:
        return None
    text = json.dumps(head).encode()
    return Ask(_infer_path(request.model_name), text + tail, {_LENGTH: str(len(text))})


def malformed(body: bytes) -> Iterator[Ask]:
    """Yield what is no request at all, for every path with a body."""
    yield Ask(_PREDICT, body)
    yield Ask("/v1/predict_rows", body)
    yield Ask(_infer_path(PAIR), body)
    # A length of the JSON that is none, or more than there is.
    yield Ask(_infer_path(PAIR), body, {_LENGTH: _NOT_LENGTHS[len(body) % len(_NOT_LENGTHS)]})


class PublicPort:
    """A public port; `faults` of all that was asked there over REST, and how many requests that were."""

    def __init__(self, door: str, address: str, channel: grpc.aio.Channel) -> None:
        self.door = door
        self.oip = GRPCInferenceServiceStub(channel)
        self.router = RouterServiceStub(channel)
        self.asked = 0
        self.faults: list[str] = []
        limits = httpx.Limits(max_connections=IN_FLIGHT)
        self._client = httpx.AsyncClient(base_url=f"http://{address}", timeout=30, limits=limits, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def ask(self, wrong: Wrong) -> bool:
        """Ask for something that is wrong in one known way, and judge the answer; tells whether REST can say it."""
        ask = as_http(wrong)
        if ask is None:
            return False
        status, body = await self._send(ask)
        # An output is asked for by its name.
        want = 404 if wrong.fault == "output" else 400
        fault = "" if status == want else f"want {want}, got {status} {body}"
        self._judge(wrong.fault, ask, fault or faults_of_json(status, body) or _faults_of_words(body))
        return True

    async def ask_malformed(self, body: bytes) -> None:
        """Ask every path with something that is no request."""
        for ask in malformed(body):
            self._judge("malformed", ask, faults_of_json(*await self._send(ask)))

    async def ask_all(self, wrongs: Iterator[Wrong], bodies: Iterator[bytes]) -> None:
        """Ask for all of them, some at a time."""

        async def work() -> None:
            for wrong in wrongs:
                await self.ask(wrong)
            for body in bodies:
                await self.ask_malformed(body)

        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))

    async def wait_ready(self) -> None:
        """Return when every model of the corpus can run."""
        async with asyncio.timeout(30):
            for model in (PAIR, MIRROR, FLIGHT):
                while not await self._is_ready(model):
                    await asyncio.sleep(0.05)

    async def _is_ready(self, model: str) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return (await self._client.get(f"/v2/models/{model}/ready")).status_code == httpx.codes.OK
        return False

    async def _send(self, ask: Ask) -> tuple[int, Any]:
        response = await self._client.post(ask.path, content=ask.body, headers=dict(ask.headers))
        self.asked += 1
        try:
            return response.status_code, response.json()
        except ValueError:
            return response.status_code, response.text[:200]

    def _judge(self, what: str, ask: Ask, fault: str) -> None:
        if fault:
            self.faults.append(f"{what} at {self.door} {ask.path}: {fault}, for {ask.body[:80]!r}")


@asynccontextmanager
async def public_port(world: World, door: str) -> AsyncIterator[PublicPort]:
    """Give the public port of a router process of its own on the world's peers: in Envoy, or behind one."""
    offset = free_offset()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("INTERLOCK_")} | {
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "gen"))),
        "INTERLOCK_STATE_DIR": str(world.folder / door),
        "INTERLOCK_PORT_OFFSET": str(offset),
        "INTERLOCK_DOOR": door,
        "INTERLOCK_REGISTRY_ADDRESS": world.control_address,
        "INTERLOCK_MONITOR_ADDRESS": world.monitor_address,
        "INTERLOCK_FEATURES_ADDRESS": world.features_address,
        "INTERLOCK_POOLS": json.dumps({"default": [f"127.0.0.1:{port}" for port in world.replica_ports]}),
        "INTERLOCK_DRAIN_DELAY_S": "0",
        "INTERLOCK_EDGE_DRAIN_TIME_S": "1",
        "INTERLOCK_LOG_LEVEL": "warning",
    }
    modules = ("router",) if door == "envoy" else ("router", "edge")
    services = [Service(one, one, door, offset, world.folder / door, environment) for one in modules]
    try:
        for service in services:
            await service.start()
        for service in services:
            await service.until_ready()
        address = f"127.0.0.1:{PORTS['edge'] + offset}"
        async with grpc.aio.insecure_channel(address) as channel, PublicPort(door, address, channel) as port:
            await port.wait_ready()
            yield port
    finally:
        await asyncio.gather(*(one.stop() for one in services if hasattr(one, "process")))


def _described(request: ModelInferRequest) -> dict[str, Any]:
    inputs = []
    for at, tensor in enumerate(request.inputs):
        found: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if at < len(request.raw_input_contents):
            found["parameters"] = {"binary_data_size": len(request.raw_input_contents[at])}
        if tensor.HasField("contents"):
            found["data"] = [1]
        inputs.append(found)
    outputs = [{"name": output.name} for output in request.outputs]
    return {"inputs": inputs, "outputs": outputs, "parameters": {"binary_data_output": True}}


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "null_value":
        return None
    return [] if kind == "list_value" else getattr(value, kind)


def _infer_path(model: str) -> str:
    return f"/v2/models/{model}/infer"


def _faults_of_words(body: Any) -> str:
    """Return what is wrong with the words of a refusal: each field, what was wanted and what came."""
    if "error" in body:
        return "" if "want" in body["error"] and "got" in body["error"] else f"want words, got {body}"
    found = [
        one for detail in body["details"] for one in detail.get("field_violations", detail.get("fieldViolations", []))
    ]
    good = found and all(one["field"] and "want" in one["description"] and "got" in one["description"] for one in found)
    return "" if good else f"want each field with what was wanted and what came, got {body}"
