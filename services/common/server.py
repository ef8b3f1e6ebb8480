"""The life of a service process: start, ready, serve, drain, exit.

A service gives `build`, an async context manager that opens its adapters and yields its bindings. `serving` does
everything but signals, for whoever owns the process; `main` is the process of the grpcio door.
"""

import asyncio
import gc
import inspect
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, NoReturn, TypeVar

import structlog
import uvloop
from prometheus_client import CollectorRegistry, ProcessCollector

from services.common.call import Binding, Method, methods_of
from services.common.chain import Chain, Limits
from services.common.door_grpc import DoorProfile, GrpcDoor
from services.common.errors import ServiceError
from services.common.handover import share_evenly, steer_to_successor
from services.common.health import HealthBoard, health_binding
from services.common.logs import configure_logs
from services.common.loop_lag import watching_loop
from services.common.metrics import RequestMetrics
from services.common.notify import READY, STOPPING, notify
from services.common.probes import ProbeServer, serve_probes, serve_probes_on
from services.common.settings import (
    CommonSettings,
    InvalidSettings,
    LaunchedSettings,
    SettingsT,
    read_notify_socket,
    read_settings,
)
from services.common.stream_answers import Streams
from services.common.tasks import spawn
from services.common.tracing import Tracing

_LOG: Final = structlog.get_logger(part="server")
_OBJECTS_PER_COLLECTION: Final = 10_000
_T = TypeVar("_T")
DrainCallback = Callable[[], Awaitable[None] | None]


class Runtime(Generic[SettingsT]):
    """What a service's `build` gets: its settings, and the process' health board, metrics, tracing and tasks."""

    def __init__(self, name: str, settings: SettingsT, launched: LaunchedSettings | None = None) -> None:
        self.name = name
        self.settings = settings
        self.launched = launched
        """What the launcher said; None where there is none."""
        self.health = HealthBoard()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.tracing = Tracing(name, settings.otlp_endpoint, settings.trace_sample_ratio)
        self.chain = Chain(
            limits=_limits(settings),
            metrics=RequestMetrics(name, self.registry),
            tracing=self.tracing,
            criticality_header=settings.criticality_header,
        )
        self.draining = asyncio.Event()
        """Set when the process begins to drain; long streams end soon after."""
        self.streams = Streams(self.chain, self.draining)
        """Answers streams whose messages are answered side by side."""
        self._on_drain: list[DrainCallback] = []

    def on_drain(self, callback: DrainCallback) -> None:
        """Call `callback`, plain or async, once health says NOT_SERVING and before new calls are refused."""
        self._on_drain.append(callback)

    def spawn(self, work: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
        """Run background work that is kept alive and whose failure is logged; `build` cancels it when it closes."""
        return spawn(work, name)

    @asynccontextmanager
    async def in_background(self, work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[asyncio.Task[None]]:
        """Run work that never ends by itself while the block runs."""
        task = self.spawn(work, name)
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def drain(self) -> None:
        """Say NOT_SERVING everywhere and run the drain callbacks, in order; a failing one is logged."""
        if self.draining.is_set():
            return
        self.health.drain()
        self.draining.set()
        for callback in self._on_drain:
            try:
                result = callback()
                if inspect.isawaitable(result):
                    await result
            except Exception as error:  # noqa: BLE001 - the drain goes on whatever one part of it does
                _LOG.error("drain_callback_failed", exc_info=error)


Build = Callable[[SettingsT, Runtime[SettingsT]], AbstractAsyncContextManager[Sequence[Binding]]]


LaunchInEnvoy = Callable[[SettingsT], int]
LaunchSeveral = Callable[[str, SettingsT], int]


class DoorUnavailable(Exception):
    """The door in Envoy cannot be used on this machine; the text says why in one line."""


class StartFailed(Exception):
    """The service cannot start; the text is one readable line."""


@dataclass(frozen=True)
class Serving(Generic[SettingsT]):
    """A service that listens: the door in Envoy finds its chain and its method table here."""

    runtime: Runtime[SettingsT]
    methods: tuple[Method, ...]
    ports: tuple[int, ...]
    """The bound gRPC ports, in the order of the addresses; 0 for a Unix socket."""
    metrics_port: int
    """0 where the launcher has the port."""


@asynccontextmanager
async def serving(
    name: str,
    settings: SettingsT,
    build: Build[SettingsT],
    addresses: Sequence[str],
    launched: LaunchedSettings | None = None,
) -> AsyncIterator[Serving[SettingsT]]:
    """Run a service on `addresses` (`host:port` or `unix:/path`) while the block runs, then drain it.

    `launched` is given to one of several processes that share the port: its launcher has checked the ports, answers for
    all on the metrics port, and steers new connections when they drain.

    Start: metrics and probes, adapters, listen, SERVING. End, in this order: NOT_SERVING, drain callbacks, the delay
    in which load balancers notice, refuse new calls and let those in flight finish, close adapters, flush traces.
    Raises StartFailed when a port is taken.
    """
    probe_socket = launched.probe_socket if launched is not None else ""
    if not settings.replace and not probe_socket:
        check_ports_free([*addresses, f"{settings.bind_host}:{settings.metrics_port_of(name)}"])
    runtime = Runtime(name, settings, launched)
    probes = ProbeServer(runtime.health, runtime.registry)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(runtime.tracing.close)
        stack.enter_context(watching_loop(name, runtime.registry))
        metrics_port = 0
        if probe_socket:
            await stack.enter_async_context(serve_probes_on(probes, Path(probe_socket)))
        else:
            metrics_port = await stack.enter_async_context(
                serve_probes(probes, settings.bind_host, settings.metrics_port_of(name))
            )
        bindings = await stack.enter_async_context(build(settings, runtime))
        methods = methods_of([*bindings, health_binding(runtime.health)])
        door = GrpcDoor(runtime.chain, methods, _profile(settings))
        ports = await door.listen(addresses)
        for port in ports:
            share_evenly(port)
        stack.push_async_callback(_drain, runtime, door, () if probe_socket else ports)
        runtime.health.open(binding.service for binding in bindings)
        probes.started = True
        _LOG.info("serving", addresses=list(addresses), metrics_port=metrics_port)
        yield Serving(runtime, methods, ports, metrics_port)


def check_ports_free(addresses: Iterable[str]) -> None:
    """Raise StartFailed if a TCP address is bound by another process.

    Asked beforehand, because SO_REUSEPORT would let two unrelated stacks share a port and each get half the calls.
    """
    for address in addresses:
        if not address.startswith("unix:") and not address.endswith(":0"):
            _check_port_free(address)


def _check_port_free(address: str) -> None:
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            raise StartFailed(
                f"cannot listen on {address}: {error.strerror}. Stop the process that holds the port, move this stack "
                "with INTERLOCK_PORT_OFFSET, or set INTERLOCK_REPLACE=1 to take over from it"
            ) from None


async def _drain(runtime: Runtime[SettingsT], door: GrpcDoor, steered: Iterable[int]) -> None:
    await runtime.drain()
    for port in steered:
        steer_to_successor(port)
    await asyncio.sleep(runtime.settings.drain_delay_s)
    await door.stop(runtime.settings.drain_grace_s)
    _LOG.info("drained")


def _limits(settings: CommonSettings) -> Limits:
    return Limits(
        message_bytes=settings.message_limit_bytes,
        bytes_in_flight=settings.bytes_in_flight_limit,
        default_deadline_s=settings.default_deadline_s,
        deadline_cap_s=settings.deadline_cap_s,
        stream_bytes=settings.stream_limit_bytes,
        stream_stall_s=settings.stream_stall_s,
    )


def _profile(settings: CommonSettings) -> DoorProfile:
    return DoorProfile(message_bytes=settings.message_limit_bytes, max_connection_age_s=settings.max_connection_age_s)


def main(
    name: str,
    kind: type[SettingsT],
    build: Build[SettingsT],
    in_envoy: LaunchInEnvoy[SettingsT] | None = None,
    several: LaunchSeveral[SettingsT] | None = None,
) -> NoReturn:
    """Run a service as this process and exit: 0 after a clean drain, 1 when it could not start.

    `in_envoy` serves the hot methods through Envoy when the settings choose that door; it runs until the process is
    told to stop and returns the exit code. Where it raises DoorUnavailable the grpcio door serves everything instead,
    from as many processes as the settings say where `several` can run them, else from this one.
    """
    sys.exit(_run(name, kind, build, in_envoy, several))


def _run(
    name: str,
    kind: type[SettingsT],
    build: Build[SettingsT],
    in_envoy: LaunchInEnvoy[SettingsT] | None,
    several: LaunchSeveral[SettingsT] | None,
) -> int:
    try:
        settings, launched = read_settings(kind), read_settings(LaunchedSettings)
        configure_logs(name, form=settings.log_format, level=settings.log_level, process=launched.process)
        if settings.door == "envoy" and in_envoy is not None:
            try:
                return in_envoy(settings)
            except DoorUnavailable as reason:
                _LOG.warning("door_unavailable", door="envoy", instead="grpcio", reason=str(reason))
        if settings.processes > 1 and launched.process is None and several is not None:
            return several(name, settings)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_live(name, settings, build, launched))
    except (InvalidSettings, StartFailed, ServiceError, OSError) as error:
        sys.stderr.write(f"interlock {name} cannot start: {error}\n")
    except Exception as error:  # noqa: BLE001 - the last line of defence: say it once, readable, and fail
        _LOG.critical("start_failed", exc_info=error)
    return 1


async def _live(name: str, settings: SettingsT, build: Build[SettingsT], launched: LaunchedSettings) -> int:
    stop = StopSignals(launched.drain_fd)
    try:
        async with serving(name, settings, build, [settings.address_of(name)], launched):
            stop.started = True
            settle_collections()
            notify(read_notify_socket(), READY)
            await stop.wait()
            notify(read_notify_socket(), STOPPING)
            # Libraries complain of what is left at the end.
            gc.unfreeze()
    except asyncio.CancelledError:
        _LOG.info("stopped_while_starting")
    return 0


def settle_collections() -> None:
    """Make the garbage collector look seldom, and never at what the start has made: that lives as long as the process.

    A full collection that goes through it holds up every call for a tenth of a second. Calls leave few cycles behind;
    at Python's own threshold of 700 objects the looking took a fifth of a call's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_PER_COLLECTION)


def call_at_end(pipe: int, callback: Callable[[], object]) -> None:
    """Call back once the other side of a pipe is closed."""
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(pipe)
        callback()

    loop.add_reader(pipe, ended)


class StopSignals:
    """SIGTERM and SIGINT of this process: the first begins the drain, the second ends the process at once.

    The end of the pipe `drain_fd` begins the drain too: its launcher wants it, or is gone.
    """

    def __init__(self, drain_fd: int | None = None) -> None:
        self.started = False
        """Set once the service is up; before that the first signal cancels the start instead of waiting for it."""
        self._asked = asyncio.Event()
        self._task = asyncio.current_task()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._arrived)
        if drain_fd is not None:
            call_at_end(drain_fd, self._arrived)

    async def wait(self) -> None:
        """Return when the first signal has come."""
        await self._asked.wait()

    def _arrived(self) -> None:
        if self._asked.is_set():
            os._exit(1)
        self._asked.set()
        if not self.started and self._task is not None:
            self._task.cancel()
