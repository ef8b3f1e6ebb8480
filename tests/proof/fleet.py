"""A small fleet as processes: a registry, two replicas of inference, two routers and their edges; one of each kind behind each door.

Nothing else runs: the routers do without features and monitor. Every process has a state folder of its own, as on
machines of its own.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import httpx
import psutil
from inference import grpc_service_pb2 as oip_pb
from inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from interlock.registry.v1 import registry_service_pb2 as registry_pb
from interlock.registry.v1.deployment_pb2 import MODEL_PLACEMENT_SHARED, BatchingPolicy
from interlock.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from interlock.registry.v1.route_pb2 import Route, Variant

from interlock_sdk.client import Client, connect
from services.common.channels import open_channel
from services.common.settings import METRICS_PORT_STEP, PORTS
from tests.fakes.model_workers import model_workers
from tests.fakes.ports import free_offset
from tests.proof import oracle
from tests.proof.clocks import MovableClock
from tests.proof.load import MODEL

ROOT: Final = Path(__file__).parents[2]
_START_TIMEOUT_S: Final = 120.0
_POLL_S: Final = 0.05


@dataclass(eq=False)
class Service:
    """One process of the fleet; `restart` replaces it as `interlock restart` does, with both at the port for a while."""

    name: str
    module: str
    door: str
    offset: int
    folder: Path
    environment: Mapping[str, str]
    process: "asyncio.subprocess.Process" = field(init=False)
    clock: MovableClock | None = None

    @property
    def address(self) -> str:
        port = "edge" if self.module == "router" and self.door == "envoy" else self.module
        return f"127.0.0.1:{PORTS[port] + self.offset}"

    @property
    def ready_url(self) -> str:
        port = PORTS[self.module] + self.offset
        # The edge has no port for probes; its public one asks the router.
        return f"http://127.0.0.1:{port if self.module == 'edge' else port + METRICS_PORT_STEP}/health/ready"

    async def start(self, **more: str) -> None:
        """Start the process; does not wait for it."""
        self.folder.mkdir(exist_ok=True)
        program = "services.common.edge" if self.module == "edge" else f"services.{self.module}"
        with (self.folder / "out.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", program,
                cwd=ROOT, env={**self.environment, **more}, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    async def until_ready(self) -> None:
        """Return when the process says that it is ready."""
        async with asyncio.timeout(_START_TIMEOUT_S):
            while not await self._is_ready():
                await self._pause()

    async def restart(self) -> None:
        """Start a successor beside the process, then drain the process."""
        before = self.process
        await self.start(INTERLOCK_REPLACE="1")
        await asyncio.gather(self._until_listening(), self.until_ready())
        before.send_signal(signal.SIGTERM)
        await before.wait()
        await self.until_ready()

    async def stop(self) -> None:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(20):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()

    def processes(self) -> list[psutil.Process]:
        """Return the process and all that it started."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def workers(self) -> list[psutil.Process]:
        """Return the model processes of a replica of inference, by pid."""
        return model_workers(psutil.Process(self.process.pid))

    def story(self) -> str:
        return "\n".join(
            [f"--- {self.name}", *(self.folder / "out.log").read_text("utf-8", "replace").splitlines()[-12:]]
        )

    async def _is_ready(self) -> bool:
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            try:
                return (await client.get(self.ready_url)).is_success
            except httpx.HTTPError:
                return False

    async def _until_listening(self) -> None:
        """Return when the new process itself, or its Envoy, holds the public port: the old one answers the probes too."""
        port = int(self.address.rpartition(":")[2])
        async with asyncio.timeout(_START_TIMEOUT_S):
            while not any(_listens(process, port) for process in self.processes()):
                await self._pause()

    async def _pause(self) -> None:
        assert self.process.returncode is None, f"{self.name} ended with {self.process.returncode}\n{self.story()}"
        await asyncio.sleep(_POLL_S)


def _listens(process: psutil.Process, port: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        listening = (one for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN)
        return any(one.laddr.port == port for one in listening)
    return False


@dataclass
class Fleet:
    """The processes and what is deployed on them: versions 1 and 2 of the oracle, half of the traffic each."""

    folder: Path
    registry: Service
    replicas: list[Service]
    routers: list[Service]
    edges: list[Service]
    """The public port of each router: itself where it lives in Envoy, an Envoy in front of it where it does not."""
    shared: bool = False
    """Whether the versions of a replica share a model process."""
    deployments: dict[str, str] = field(default_factory=dict)
    client: Client = field(init=False)
    _stub: Any = field(init=False)

    @property
    def services(self) -> list[Service]:
        return list(dict.fromkeys([self.registry, *self.replicas, *self.routers, *self.edges]))

    async def start(self) -> None:
        """Start everything, deploy the oracle, and return when both routers answer for both versions."""
        await asyncio.gather(*(service.start() for service in self.services))
        await self.registry.until_ready()
        await self.client.models.ensure(MODEL)
        for number in (1, 2):
            await self._register(number)
        await asyncio.gather(*(self.deploy(version) for version in ("1", "2")))
        await asyncio.gather(*(service.until_ready() for service in self.services))
        await self.split(5_000, 5_000)
        await self.until_whole()

    async def deploy(self, version: str) -> None:
        """Deploy a version on both replicas and wait until they can answer."""
        deployment = await self.client.deployments.create(MODEL, version, replicas=len(self.replicas))
        if self.shared:
            policy = BatchingPolicy(placement=MODEL_PLACEMENT_SHARED)
            await self.client.deployments.set_batching(deployment.name, policy, ["placement"])
        await self.client.deployments.wait_until_ready(deployment.name, timeout_s=_START_TIMEOUT_S)
        self.deployments[version] = deployment.name

    async def undeploy(self, version: str) -> None:
        """Delete a version's deployment; it must have no traffic."""
        await self.remove(self.deployments.pop(version))

    async def remove(self, deployment: str) -> None:
        """Delete a deployment of any model."""
        await self._stub.DeleteDeployment(registry_pb.DeleteDeploymentRequest(name=deployment))

    async def split(self, *weights: int) -> None:
        """Give versions 1 and 2 these weights, in basis points."""
        variants = [
            Variant(name=version, deployment=self.deployments[version], weight_basis_points=weight)
            for version, weight in zip(("1", "2"), weights, strict=True)
            if weight
        ]
        await self.client.routes.set_variants(await self._route(), variants)

    async def until_whole(self) -> None:
        """Return when every replica answers for all its versions, and every router can run all that it routes to."""
        least = 1 if self.shared else len(self.deployments)
        async with asyncio.timeout(_START_TIMEOUT_S):
            for replica in self.replicas:
                while len(replica.workers()) < least:
                    await asyncio.sleep(_POLL_S)
            for version in sorted(self.deployments):
                await self.until_ready(MODEL, version)

    async def until_ready(self, model: str, version: str) -> None:
        """Return when every replica answers for a version, and every router can run it."""
        request = oip_pb.ModelReadyRequest(name=model, version=version)
        async with asyncio.timeout(_START_TIMEOUT_S):
            for service in (*self.replicas, *self.edges):
                async with open_channel(service.address) as channel:
                    await _until_ready(GRPCInferenceServiceStub(channel), request)

    def story(self) -> str:
        return "\n".join(service.story() for service in self.services)

    async def _register(self, number: int) -> None:
        path = self.folder / f"oracle-{number}.onnx"
        path.write_bytes(oracle.model(number))
        artifact = await self.client.artifacts.upload(path)
        version = oracle.described(artifact.name.removeprefix("artifacts/"), path.stat().st_size)
        await self.client.models.register(MODEL, version)

    async def _route(self) -> Route:
        async with asyncio.timeout(_START_TIMEOUT_S):
            while (route := await self.client.routes.get(MODEL)) is None:
                await asyncio.sleep(_POLL_S)
            return route


async def _until_ready(stub: Any, request: oip_pb.ModelReadyRequest) -> None:
    while True:
        with contextlib.suppress(grpc.aio.AioRpcError):
            if (await stub.ModelReady(request, timeout=5)).ready:
                return
        await asyncio.sleep(_POLL_S)


@asynccontextmanager
async def new_fleet(
    *, shared: bool = False, processes: int = 1, more_replicas: int = 0, clocks: bool = False
) -> AsyncIterator[Fleet]:
    """Give a fleet that is ready, and end it; routers, and inference in Envoy, are so many processes on a port.

    With `clocks` every service that is a process of its own has a time of day of its own, which can be moved; Envoy has not.
    """
    folder = Path(tempfile.mkdtemp(prefix="il-"))
    offsets = [free_offset() for _ in range(4 + more_replicas)]
    common = {key: value for key, value in os.environ.items() if not key.startswith("INTERLOCK_")} | {
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "gen"))),
        "INTERLOCK_REGISTRY_ADDRESS": f"127.0.0.1:{PORTS['registry'] + offsets[0]}",
        "INTERLOCK_DRAIN_DELAY_S": "0.2",
        "INTERLOCK_LOG_LEVEL": "warning",
    }

    def service(name: str, module: str, door: str, offset: int, **more: str) -> Service:
        environment = {
            **common,
            "INTERLOCK_STATE_DIR": str(folder / name),
            "INTERLOCK_PORT_OFFSET": str(offset),
            "INTERLOCK_DOOR": door,
            **more,
        }
        made = Service(name, module, door, offset, folder / name, environment)
        if clocks and door == "grpcio" and module != "edge":
            made.clock = MovableClock(folder / f"{name}.clock")
            made.environment = {**environment, **made.clock.environment}
        return made

    replicas = [
        service("inference-a", "inference", "grpcio", offsets[0]),
        service("inference-b", "inference", "envoy", offsets[1], INTERLOCK_INFERENCE_PROCESSES=str(processes)),
        *(service(f"inference-{at}", "inference", "grpcio", offset) for at, offset in enumerate(offsets[4:], 3)),
    ]
    pools = {
        "INTERLOCK_POOLS": json.dumps({"default": [one.address for one in replicas]}),
        "INTERLOCK_ROUTER_PROCESSES": str(processes),
    }
    routers = [
        service("router-a", "router", "envoy", offsets[2], **pools),
        service("router-b", "router", "grpcio", offsets[3], **pools),
    ]
    edge = service("edge-b", "edge", "grpcio", offsets[3])
    registry = service("registry", "registry", "grpcio", offsets[0])
    fleet = Fleet(folder, registry, replicas, routers, [routers[0], edge], shared)
    try:
        async with connect(fleet.registry.address) as client, open_channel(fleet.registry.address) as channel:
            fleet.client, fleet._stub = client, RegistryServiceStub(channel)
            await fleet.start()
            yield fleet
    finally:
        await asyncio.gather(*(one.stop() for one in fleet.services if hasattr(one, "process")))
        shutil.rmtree(folder, ignore_errors=True)
