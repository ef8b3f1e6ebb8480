"""Everything under test, as processes on core 0: ours in four shapes, Triton, mosec, and a server by hand."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from interlock.registry.v1.deployment_pb2 import (
    MODEL_PLACEMENT_INLINE,
    MODEL_PLACEMENT_SHARED,
    MODEL_PLACEMENT_UNSPECIFIED,
    BatchingPolicy,
)
from interlock.registry.v1.model_version_pb2 import RUNTIME_ONNX, ModelFile, ModelVersion
from interlock.types.v1.signature_pb2 import (
    FEATURE_TYPE_DOUBLE,
    TASK_REGRESSION,
    FeatureSpec,
    PredictionSpec,
    Signature,
)
from interlock.types.v1.tensor_pb2 import DATA_TYPE_FP32, TensorSpec

from benchmarks.serving.loading import Cell, LoadFailed
from benchmarks.serving.models import CNN, MLP, MODELS, TABULAR, Model
from benchmarks.serving.rivals.install import environment
from interlock_sdk.client import Client, connect
from services.common.settings import METRICS_PORT_STEP, PORTS
from tests.fakes.ports import free_offset

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
TEST_CORE = 0
PLACEMENTS = {
    "process": MODEL_PLACEMENT_UNSPECIFIED, "shared": MODEL_PLACEMENT_SHARED, "inline": MODEL_PLACEMENT_INLINE,
}  # fmt: skip
_READY_S = 180.0
# prometheus_client's parser takes a counter without "_total", such as Triton's, for no counter at all.
_SAMPLE = re.compile(r"(?P<name>\w+)\{(?P<labels>[^}]*)\} (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class CannotStart(Exception):
    """A rival does not run here; the text says why, in one line."""


@dataclass
class Server:
    """A running server: where it listens, and how many calls it says that it answered."""

    name: str
    port: int
    ok_count: Callable[[], int] | None
    processes: Sequence[subprocess.Popen[bytes]] = field(default_factory=list)
    metrics: Sequence[str] = ()
    """Where our services tell their own figures."""

    def settled_count(self) -> int:
        """Return the server's count once it has come to rest: Triton counts after it has answered."""
        if self.ok_count is None:
            return 0
        before, count = -1, self.ok_count()
        while count != before:
            time.sleep(0.05)
            before, count = count, self.ok_count()
        return count

    def compare_count(self, before: int, cell: Cell) -> None:
        """Raise LoadFailed unless the server's count of good calls is the load's; it may come a moment late."""
        if self.ok_count is None:
            return
        end = time.monotonic() + 3
        while (counted := self.ok_count() - before) != cell.ok_count:
            if time.monotonic() > end:
                raise LoadFailed(f"the load counts {cell.ok_count} good calls, the server {counted}")
            time.sleep(0.05)

    def cpu_s(self) -> float:
        """Return the processor time of its processes so far; the scheduler's own count, as ticks are too coarse."""
        total = 0
        for process in self.processes:
            root = psutil.Process(process.pid)
            for one in (root, *root.children(recursive=True)):
                for thread in Path(f"/proc/{one.pid}/task").glob("*/schedstat"):
                    with contextlib.suppress(OSError):
                        total += int(thread.read_text().split()[0])
        return total / 1e9


class Machine:
    """Starts processes on the core under test and ends them all."""

    def __init__(self, folder: Path, cores: str) -> None:
        self._folder = folder
        self._cores = cores
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def core_count(self) -> int:
        """Cores under test."""
        return self._cores.count(",") + 1

    def start(self, name: str, command: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("INTERLOCK_")}
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                ["taskset", "-c", self._cores, *command],
                env={**clean, **environment}, stdout=log, stderr=log, cwd=ROOT, start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)
        return process

    def log_of(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text("utf-8", "replace")[-200000:]

    def close(self) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def all_servers(
    folder: Path,
    wanted: Sequence[str],
    cores: str,
    placement: str = "process",
    *,
    models: Sequence[Model] = MODELS,
    entries: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[tuple[dict[str, Server], dict[str, str]]]:
    """Give the servers by name, and why those that are missing do not run.

    Ours hold `models`, each at `placement`; `entries` names what runs instead of a service's own module, and its arguments.
    """
    servers: dict[str, Server] = {}
    missing: dict[str, str] = {}
    with ExitStack() as opened:
        machine = Machine(folder, cores)
        opened.callback(machine.close)
        if any(name in (*OURS, *SEVERAL) for name in wanted):
            ours = _ours(machine, folder, wanted, placement, models=models, entries=entries or {})
            servers |= {name: one for name, one in ours.items() if name in wanted}
        for name, start in RIVALS.items():
            if name not in wanted:
                continue
            try:
                servers[name] = start(machine, folder)
            except CannotStart as error:
                missing[name] = str(error)
        yield servers, missing


OURS = ("router + inference, envoy", "router + inference, grpcio", "inference, envoy", "inference, grpcio")
SEVERAL = ("router + inference, envoy, 2 processes", "inference, envoy, 2 processes")


def _ours(
    machine: Machine,
    folder: Path,
    wanted: Sequence[str],
    placement: str,
    *,
    models: Sequence[Model],
    entries: Mapping[str, Sequence[str]],
) -> dict[str, Server]:
    """Start a registry, a replica of inference behind each door, and a router of each door before the grpcio replica."""
    offsets = [free_offset() for _ in range(6)]
    registry = f"127.0.0.1:{PORTS['registry'] + offsets[0]}"
    common = {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}",
        "INTERLOCK_REGISTRY_ADDRESS": registry,
        "INTERLOCK_LOG_LEVEL": "warning",
        "INTERLOCK_INFERENCE_START_WAIT_S": "0",
    }

    def run(name: str, module: str, door: str, offset: int, **more: str) -> subprocess.Popen[bytes]:
        state = {
            "INTERLOCK_STATE_DIR": str(folder / name),
            "INTERLOCK_PORT_OFFSET": str(offset),
            "INTERLOCK_DOOR": door,
        }
        entry = entries.get(module, [f"services.{module}"])
        return machine.start(name, [sys.executable, "-m", *entry], **common, **state, **more)

    run("registry", "registry", "grpcio", offsets[0])
    grpcio = run("inference-grpcio", "inference", "grpcio", offsets[0])
    replicas = {"inference, grpcio": (grpcio, offsets[0])}
    if "inference, envoy" in wanted:
        replicas["inference, envoy"] = (run("inference-envoy", "inference", "envoy", offsets[1]), offsets[1])
    if SEVERAL[1] in wanted:
        two = run("inference-2", "inference", "envoy", offsets[4], INTERLOCK_INFERENCE_PROCESSES="2")
        replicas[SEVERAL[1]] = (two, offsets[4])
    _wait_for_port("registry", machine, registry)
    asyncio.run(_publish(registry, len(replicas), models, placement))
    pools = {"INTERLOCK_POOLS": json.dumps({"default": [f"127.0.0.1:{PORTS['inference'] + offsets[0]}"]})}
    found = {
        name: Server(
            name,
            PORTS["inference"] + offset,
            _interlock_count("inference", offset),
            [process],
            [_metrics_url("inference", offset)],
        )
        for name, (process, offset) in replicas.items()
    }
    routers = (
        (OURS[0], "envoy", "edge", offsets[2], "1"),
        (OURS[1], "grpcio", "router", offsets[3], "1"),
        (SEVERAL[0], "envoy", "edge", offsets[5], "2"),
    )
    for name, door, port_of, offset, processes in routers:
        if name in wanted:
            process = run(
                f"router-{door}-{processes}", "router", door, offset, INTERLOCK_ROUTER_PROCESSES=processes, **pools
            )
            metrics = [_metrics_url("router", offset), _metrics_url("inference", offsets[0])]
            found[name] = Server(
                name, PORTS[port_of] + offset, _interlock_count("router", offset), [process, grpcio], metrics
            )
    at = {name: offset for name, (_, offset) in replicas.items()} | {name: offset for name, _, _, offset, _ in routers}
    for name in found:
        service = "router" if name.startswith("router") else "inference"
        _wait_for_http(name, f"http://127.0.0.1:{PORTS[service] + METRICS_PORT_STEP + at[name]}/health/ready")
    return found


async def _publish(registry: str, replicas: int, models: Sequence[Model], placement: str) -> None:
    batching = BatchingPolicy(placement=PLACEMENTS[placement])
    async with connect(registry, timeout_s=60) as client:
        for model in models:
            await _deploy(client, model, replicas, batching)


async def _deploy(client: Client, model: Model, replicas: int, batching: BatchingPolicy) -> None:
    await client.models.ensure(model.name)
    artifact = await client.artifacts.upload(model.path)
    digest = artifact.name.removeprefix("artifacts/")
    features = [
        FeatureSpec(name=name, type=FEATURE_TYPE_DOUBLE, tensor="x", column=at)
        for at, name in enumerate(model.feature_names)
    ]
    signature = Signature(
        inputs=[TensorSpec(name="x", data_type=DATA_TYPE_FP32, shape=[-1, *model.row_shape])],
        outputs=[TensorSpec(name="y", data_type=DATA_TYPE_FP32, shape=[-1, model.outputs])],
        features=features,
        prediction=PredictionSpec(task=TASK_REGRESSION, tensor="y") if features else None,
    )
    files = [ModelFile(path="model.onnx", digest=digest, size_bytes=model.path.stat().st_size)]
    await client.models.register(model.name, ModelVersion(runtime=RUNTIME_ONNX, files=files, signature=signature))
    deployment = await client.deployments.create(
        model.name, "1", replicas=replicas, traffic_percent=100, batching=batching
    )
    await client.deployments.wait_until_ready(deployment.name, timeout_s=_READY_S)


def _metrics_url(service: str, offset: int) -> str:
    return f"http://127.0.0.1:{PORTS[service] + METRICS_PORT_STEP + offset}/metrics"


def _interlock_count(service: str, offset: int) -> Callable[[], int]:
    url = _metrics_url(service, offset)

    def count() -> int:
        found = _samples(url, f"interlock_{service}_requests_total")
        hot = ("/ModelInfer", "/Predict", "/PredictRows")
        return sum(int(value) for labels, value in found if labels["code"] == "OK" and labels["method"].endswith(hot))

    return count


def _triton(machine: Machine, folder: Path) -> Server:
    python = environment("triton") / "bin" / "python"
    if not python.exists():
        raise CannotStart("its environment is not installed")
    ask = "import pytriton, sys; print(pytriton.__path__[0]); print(sys.base_prefix)"
    done = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotStart("pytriton cannot be imported")
    package, base = map(Path, done.stdout.split())
    stub = package / "tritonserver" / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}"
    # The backend looks for its stub, which is made for one version of Python, beside itself.
    backends = folder / "triton-backends"
    shutil.copytree(package / "tritonserver" / "backends", backends)
    shutil.copy(stub / "triton_python_backend_stub", backends / "python")
    repository = folder / "triton"
    for model in MODELS:
        version = repository / model.name / "1"
        version.mkdir(parents=True)
        shutil.copy(HERE / "rivals" / "triton_model.py", version / "model.py")
        shutil.copy(model.path, version / "model.onnx")
        (repository / model.name / "config.pbtxt").write_text(_triton_config(model, machine.core_count))
    offset = free_offset()
    http, port, metrics = (base_port + offset for base_port in (9001, 9002, 9101))
    libraries = [package.parent / "nvidia_pytriton.libs", base / "lib"]
    process = machine.start(
        "triton",
        [
            str(package / "tritonserver" / "bin" / "tritonserver"), f"--model-repository={repository}",
            f"--backend-directory={backends}", f"--http-port={http}", f"--grpc-port={port}",
            f"--metrics-port={metrics}", "--http-address=127.0.0.1", "--grpc-address=127.0.0.1",
        ],
        LD_LIBRARY_PATH=os.pathsep.join(map(str, libraries)),
        PYTHONPATH=str(package.parent),
        PATH=f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        PYTHONHOME=str(base),
    )  # fmt: skip
    _wait_for_http("triton", f"http://127.0.0.1:{http}/v2/health/ready", process, machine)

    def count() -> int:
        found = _samples(f"http://127.0.0.1:{metrics}/metrics", "nv_inference_request_success")
        return sum(int(value) for _, value in found)

    return Server("triton", port, count, [process])


def _triton_config(model: Model, processes: int) -> str:
    shape = ", ".join(map(str, model.row_shape))
    return f"""
        name: "{model.name}"
        backend: "python"
        max_batch_size: 64
        input [{{ name: "x", data_type: TYPE_FP32, dims: [{shape}] }}]
        output [{{ name: "y", data_type: TYPE_FP32, dims: [{model.outputs}] }}]
        instance_group [{{ count: {processes}, kind: KIND_CPU }}]
        dynamic_batching {{ }}
    """


def _mosec(machine: Machine, _folder: Path) -> Server:
    python = environment("mosec") / "bin" / "python"
    if not python.exists():
        raise CannotStart("its environment is not installed")
    port = 9001 + free_offset()
    command = [str(python), str(HERE / "rivals" / "mosec_server.py"), "--port", str(port), "--address", "127.0.0.1"]
    files = " ".join(f"{model.name}={model.path}" for model in (TABULAR, MLP, CNN))
    process = machine.start("mosec", command, RIVAL_MODELS=files, RIVAL_PROCESSES=str(machine.core_count))
    _wait_for_http("mosec", f"http://127.0.0.1:{port}/metrics", process, machine)
    return Server("mosec", port, None, [process])


def _by_hand(machine: Machine, _folder: Path) -> Server:
    port = 9001 + free_offset()
    files = [f"{model.name}={model.path}" for model in MODELS]
    command = [sys.executable, str(HERE / "rivals" / "grpc_by_hand.py"), str(port), *files]
    process = machine.start("grpc.aio by hand", command, PYTHONPATH=str(ROOT / "gen"))
    _wait_for_port("grpc.aio by hand", machine, f"127.0.0.1:{port}")
    return Server("grpc.aio by hand", port, None, [process])


RIVALS: Mapping[str, Callable[[Machine, Path], Server]] = {
    "triton": _triton,
    "mosec": _mosec,
    "grpc.aio by hand": _by_hand,
}


def _samples(url: str, name: str) -> list[tuple[dict[str, str], float]]:
    with urllib.request.urlopen(url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    found = []
    for line in lines:
        if match := _SAMPLE.fullmatch(line):
            labels = dict(_LABEL.findall(match["labels"]))
            found += [(labels, float(match["value"]))] if match["name"] == name else []
    return found


def _wait_for_http(
    name: str, url: str, process: subprocess.Popen[bytes] | None = None, machine: Machine | None = None
) -> None:
    def answers() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return response.status == 200
        except OSError:
            return False

    _wait(name, answers, process, machine)


def _wait_for_port(name: str, machine: Machine, address: str) -> None:
    host, _, port = address.rpartition(":")

    def listens() -> bool:
        try:
            socket.create_connection((host, int(port)), 1).close()
        except OSError:
            return False
        return True

    _wait(name, listens, None, machine)


def _wait(
    name: str, condition: Callable[[], bool], process: subprocess.Popen[bytes] | None, machine: Machine | None
) -> None:
    end = time.monotonic() + _READY_S
    while not condition():
        if (process is not None and process.poll() is not None) or time.monotonic() > end:
            last = machine.log_of(name).strip().splitlines()[-1:] if machine else []
            raise CannotStart(f"it does not start: {' '.join(last)[:300]}")
        time.sleep(0.2)
