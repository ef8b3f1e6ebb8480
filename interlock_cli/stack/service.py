"""Keeps one service alive: starts it, starts it again when it dies, replaces it, drains it."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from interlock_cli.errors import CommandFailed
from interlock_cli.stack.backoff import Backoff, RestartPolicy
from interlock_cli.stack.child import Child, Exit, NotReady
from interlock_cli.stack.log_file import LogFile
from interlock_cli.stack.spec import ReadyProbe, ServiceSpec
from services.common.tasks import spawn

_LIFE_MISSES: Final = 2
REPLACE: Final = {"INTERLOCK_REPLACE": "1"}

# Tells what happened to a service: its name and one line of text.
Tell = Callable[[str, str], None]


class State(StrEnum):
    """Where a service is; a replacement runs beside a READY one."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    REPLACING = "replacing"
    WAITING = "waiting to restart"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a service may take, in seconds, and when it is given up."""

    start_s: float = 90.0
    stop_s: float = 80.0
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    life_interval_s: float = 1.0
    life_timeout_s: float = 5.0
    """A process that twice in a row does not answer for so long is killed: its event loop stands still."""


class StartFailed(Exception):
    """A service could not be started, or crashed too often; the text says how."""


class Service:
    """One service of the stack and the process that is it at the moment."""

    def __init__(self, spec: ServiceSpec, folder: Path, log: LogFile, patience: Patience, tell: Tell) -> None:
        self.spec = spec
        self.state = State.STOPPED
        self.restart_count = 0
        self._folder = folder
        self._log = log
        self._patience = patience
        self._tell = tell
        # random.random: spreading restarts needs no secrecy.
        self._backoff = Backoff(patience.policy, random.random)
        self._child: Child | None = None
        self._children: set[Child] = set()
        # Held while the process is being exchanged, so that the death of the old one starts no third.
        self._exchange = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._has_been_ready = False
        self._up: asyncio.Future[None] | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process id, None when no process runs."""
        return self._child.pid if self._child is not None and self._child.alive else None

    @property
    def uptime_s(self) -> float | None:
        """Seconds since the process started, None when none runs."""
        if self._child is None or not self._child.alive:
            return None
        return time.monotonic() - self._child.started_at_s

    async def start(self) -> None:
        """Start the service and return when it is ready; raises StartFailed when it never was."""
        self._up = asyncio.get_running_loop().create_future()
        self._stopping.clear()
        self._backoff.forget()
        self._keeper = spawn(self._keep(), f"keep-{self.spec.name}")
        await asyncio.shield(self._up)

    async def stop(self) -> Exit | None:
        """Drain the service; returns how its process ended, None when none ran."""
        self._stopping.set()
        if self._children:
            self.state = State.DRAINING
        exits = await asyncio.gather(*(child.stop(self._patience.stop_s) for child in tuple(self._children)))
        if self._keeper is not None:
            await asyncio.wait((self._keeper,))
        if self.state is not State.FAILED:
            self.state = State.STOPPED
        return exits[0] if exits else None

    def kill(self) -> None:
        """End every process of the service at once."""
        self._stopping.set()
        for child in tuple(self._children):
            child.kill()

    async def replace(self) -> Exit | None:
        """Put a new process in the place of the running one, which drains once the new one is ready.

        Returns how the old one ended. A service that cannot share its port is stopped first. Raises CommandFailed, and
        the old process goes on, when the new one does not become ready.
        """
        if self.state is not State.READY or self._child is None:
            raise CommandFailed(f"{self.spec.name} is {self.state}, it can be restarted when it is ready")
        async with self._exchange:
            old = self._child
            self.state = State.REPLACING
            try:
                if self.spec.shares_port:
                    self._child = await self._launch_beside()
                    return await old.stop(self._patience.stop_s)
                ended = await old.stop(self._patience.stop_s)
                self._child = await self._launch_beside()
            except NotReady as error:
                raise CommandFailed(f"{self.spec.name} was not replaced: {error}") from None
            else:
                return ended
            finally:
                self.state = State.DRAINING if self._stopping.is_set() else State.READY

    async def _launch_beside(self) -> Child:
        child = await self._launch(REPLACE if self.spec.shares_port else {})
        try:
            await child.wait_ready(self.spec.probe, self._patience.start_s)
        except NotReady:
            child.kill()
            raise
        return child

    async def _keep(self) -> None:
        try:
            while not self._stopping.is_set():
                how = await self._live()
                if self._stopping.is_set() or not await self._may_restart(how):
                    break
                self.restart_count += 1
        finally:
            self._settle(StartFailed("it was stopped before it was ready"))

    async def _live(self) -> str:
        """Run processes until one dies without being asked to; returns how it died."""
        self.state = State.STARTING
        try:
            child = self._child = await self._launch({})
            await child.wait_ready(self.spec.probe, self._patience.start_s)
        except NotReady as error:
            if self._child is not None:
                await self._child.stop(0)
            return str(error)
        self._note_ready()
        watching = spawn(self._watch_life(), f"watch-life-{self.spec.name}")
        try:
            while True:
                exit_ = await asyncio.shield(child.exited)
                async with self._exchange:
                    if self._child is child or self._child is None:
                        return f"it ended by itself ({exit_})"
                    child = self._child
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch_life(self) -> None:
        """Kill the process when it answers nobody any more; its end is then dealt with like any other."""
        misses, probe = 0, self.spec.life
        while probe is not None:
            await asyncio.sleep(self._patience.life_interval_s)
            # While another one takes over, either may get the question.
            if self.state is not State.READY:
                misses = 0
                continue
            misses = 0 if await self._lives(probe) else misses + 1
            if misses >= _LIFE_MISSES and self._child is not None and self.state is State.READY:
                self._tell(self.spec.name, f"pid {self.pid} answers nobody any more and is killed")
                self._child.kill()
                misses = 0

    async def _lives(self, probe: ReadyProbe) -> bool:
        try:
            async with asyncio.timeout(self._patience.life_timeout_s):
                return await probe()
        except (OSError, TimeoutError):
            return False

    async def _launch(self, additions: dict[str, str]) -> Child:
        child = await Child.start(self.spec, self._folder, self._log, additions)
        self._children.add(child)
        child.exited.add_done_callback(lambda _: self._children.discard(child))
        if self._stopping.is_set():
            child.kill()
        return child

    def _note_ready(self) -> None:
        if self._stopping.is_set():
            return
        self.state = State.READY
        self._has_been_ready = True
        self._tell(self.spec.name, f"ready, pid {self.pid}, {self.spec.address}")
        self._settle(None)

    async def _may_restart(self, how: str) -> bool:
        self._backoff.fail(time.monotonic())
        if self._backoff.exhausted or not self._has_been_ready:
            self.state = State.FAILED
            count = self._backoff.failure_count
            self._tell(
                self.spec.name, f"{how}; {f'{count} failures in a row, left stopped' if count > 1 else 'stopped'}"
            )
            self._settle(StartFailed(how))
            return False
        wait_s = self._backoff.wait_s()
        self.state = State.WAITING
        self._tell(self.spec.name, f"{how}; starts again in {wait_s:.1f} s")
        try:
            async with asyncio.timeout(wait_s):
                await self._stopping.wait()
        except TimeoutError:
            return True
        return False

    def _settle(self, error: StartFailed | None) -> None:
        if self._up is None or self._up.done():
            return
        if error is None:
            self._up.set_result(None)
        else:
            self._up.set_exception(error)
