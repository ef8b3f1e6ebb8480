"""Starts the services in order, keeps each alive, and drains them in order."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from interlock_cli.errors import CommandFailed
from interlock_cli.stack.log_file import LogFile, tail
from interlock_cli.stack.service import Patience, Service, StartFailed, State
from interlock_cli.stack.spec import StackPlan
from interlock_cli.stack.state_folder import StateFolder

LAST_LINES = 20

# Opens the log of a service, given its name.
OpenLog = Callable[[str], LogFile]
# Shows a line about a service to the person who started the stack.
Tell = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One row of the status table."""

    name: str
    state: str
    pid: int | None
    uptime_s: float | None
    restart_count: int
    address: str

    def as_json(self) -> dict[str, Any]:
        """Return the row as plain values."""
        return asdict(self)


class Supervisor:
    """The stack as running processes."""

    def __init__(self, plan: StackPlan, folder: StateFolder, patience: Patience, open_log: OpenLog, tell: Tell) -> None:
        self._plan = plan
        self._folder = folder
        self._tell = tell
        self._services: Mapping[str, Service] = {
            spec.name: Service(spec, folder.run, open_log(spec.name), patience, self._heard) for spec in plan.services
        }

    def status(self) -> list[ServiceStatus]:
        """Return one row per service, the edge first."""
        return [
            ServiceStatus(
                name, service.state.value, service.pid, service.uptime_s, service.restart_count, service.spec.address
            )
            for name, service in self._services.items()
        ]

    async def start(self) -> None:
        """Start every service; raises CommandFailed, with the last lines of its log, when one cannot be started."""
        for wave in self._plan.start_waves:
            names = [spec.name for spec in wave]
            results = await asyncio.gather(*(self._services[name].start() for name in names), return_exceptions=True)
            for name, result in zip(names, results, strict=True):
                if isinstance(result, StartFailed):
                    raise CommandFailed(
                        f"{name} cannot be started: {result}", [f"its log: {self._folder.log_of(name)}"]
                    )
                if isinstance(result, BaseException):
                    raise result

    async def stop(self) -> bool:
        """Drain every service, each when the one before is gone; returns whether all ended well."""
        clean = True
        for name in self._plan.drain_order:
            ended = await self._services[name].stop()
            if ended is not None:
                self._tell(name, f"stopped ({ended})")
                clean = clean and ended.code == 0
        return clean

    def kill(self) -> None:
        """End everything at once."""
        for service in self._services.values():
            service.kill()

    async def restart(self, name: str) -> str:
        """Replace a service's process, or start one that does not run; returns how the old one ended.

        Raises CommandFailed.
        """
        service = self._find(name)
        if service.state in (State.FAILED, State.STOPPED):
            return await self._revive(service)
        ended = await service.replace()
        self._tell(name, f"replaced, pid {service.pid}; the old process ended with {ended}")
        if ended is not None and ended.code != 0:
            raise CommandFailed(f"{name} was replaced, but the old process ended with {ended}")
        return str(ended)

    async def stop_one(self, name: str) -> str:
        """Drain one service and leave it stopped; returns how its process ended. Raises CommandFailed."""
        ended = await self._find(name).stop()
        self._tell(name, f"stopped on request ({ended or 'it did not run'})")
        return str(ended or "it did not run")

    def _find(self, name: str) -> Service:
        service = self._services.get(name)
        if service is None:
            raise CommandFailed(f"no service is called {name!r}", [f"services: {', '.join(self._services)}"])
        return service

    async def _revive(self, service: Service) -> str:
        try:
            await service.start()
        except StartFailed as error:
            raise CommandFailed(f"{service.spec.name} cannot be started: {error}") from None
        return "it was not running"

    def _heard(self, name: str, text: str) -> None:
        self._tell(name, text)
        if self._services[name].state is State.FAILED:
            for line in self._last_lines(name):
                self._tell(name, f"| {line}")

    def _last_lines(self, name: str) -> Iterator[str]:
        path = self._folder.log_of(name)
        yield f"last lines of {path}:"
        with contextlib.suppress(OSError):
            yield from tail(path, LAST_LINES)
