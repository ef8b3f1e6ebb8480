"""A stack from its start to its end, in the foreground: what `interlock up` does."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

from interlock_cli.output import say
from interlock_cli.settings import StackSettings, child_environment
from interlock_cli.stack.backoff import RestartPolicy
from interlock_cli.stack.control import Handler, serve_control
from interlock_cli.stack.log_file import LogFile
from interlock_cli.stack.next_steps import print_next_steps
from interlock_cli.stack.parent_death import die_with_parent
from interlock_cli.stack.plan import choose_doors, edge_address, make_plan
from interlock_cli.stack.port_check import require_free, taken_ports
from interlock_cli.stack.service import Patience
from interlock_cli.stack.spec import StackPlan
from interlock_cli.stack.state_folder import StateFolder, stack_lock
from interlock_cli.stack.status_table import print_status
from interlock_cli.stack.supervisor import Supervisor
from services.common.tasks import spawn

_EXIT_NOW: Final = 130
_DEMO: Final = (sys.executable, "-m", "interlock_cli", "demo")


def run_stack(settings: StackSettings, *, demo: bool) -> int:
    """Start the stack, serve until told to stop, drain it; returns the exit code. Raises CommandFailed."""
    folder = StateFolder.at(settings.state_dir)
    folder.prepare()
    with stack_lock(folder, settings.port_offset):
        doors = choose_doors(settings)
        if doors.reason:
            say(doors.reason)
        plan = make_plan(settings, folder, doors)
        return run_plan(settings, folder, plan, demo=demo)


def run_plan(settings: StackSettings, folder: StateFolder, plan: StackPlan, *, demo: bool) -> int:
    """Run what `plan` says in `folder`, which the caller has locked; returns the exit code. Raises CommandFailed."""
    require_free(taken_ports(settings.bind_host, plan.ports))
    return asyncio.run(_Stack(settings, folder, plan).run(demo=demo))


class _Stack:
    def __init__(self, settings: StackSettings, folder: StateFolder, plan: StackPlan) -> None:
        self._settings = settings
        self._folder = folder
        self._plan = plan
        self._logs = ExitStack()
        self._journal = self._open_log("stack")
        self._stop = asyncio.Event()
        self._supervisor = Supervisor(plan, folder, _patience(settings), self._open_log, self._tell)

    async def run(self, *, demo: bool) -> int:
        """Live through the stack's life; the second signal ends it at once."""
        with self._logs:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(number, self._interrupted)
            async with serve_control(self._folder.control_socket, self._handlers()):
                try:
                    await self._serve(demo=demo)
                except BaseException:
                    await self._drain()
                    raise
                return 0 if await self._drain() else 1

    async def _drain(self) -> bool:
        self._stop.set()
        return await self._supervisor.stop()

    async def _serve(self, *, demo: bool) -> None:
        started_at_s = time.monotonic()
        names = ", ".join(spec.name for wave in self._plan.start_waves for spec in wave)
        with _unless_nobody_reads():
            say(f"starting {names} on {self._folder.path}")
        if not await self._unless_stopped(self._supervisor.start()):
            return
        with _unless_nobody_reads():
            say(f"\nall services are ready after {time.monotonic() - started_at_s:.1f} s\n")
            print_status(self._supervisor.status())
        if demo and not await self._unless_stopped(self._run_demo()):
            return
        with _unless_nobody_reads():
            print_next_steps(self._settings, self._folder, demo=demo)
        await self._stop.wait()
        with _unless_nobody_reads():
            say("\ndraining; Ctrl-C again stops at once")

    async def _unless_stopped(self, work: Coroutine[Any, Any, Any]) -> bool:
        """Do `work` to its end, or give it up when the stack is to stop; returns whether it came to its end."""
        doing, stopped = spawn(work, "stack-step"), spawn(self._stop.wait(), "stack-stop")
        try:
            await asyncio.wait({doing, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                doing.result()
                return True
            return False
        finally:
            doing.cancel()
            stopped.cancel()

    async def _run_demo(self) -> None:
        environment = {"INTERLOCK_STATE_DIR": str(self._folder.path)}
        process = await asyncio.create_subprocess_exec(
            *_DEMO, env=child_environment(environment), start_new_session=True, preexec_fn=die_with_parent()
        )
        try:
            if await process.wait() != 0:
                say("the demo did not finish; the services go on")
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()

    def _handlers(self) -> Mapping[str, Handler]:
        async def status(_: Mapping[str, Any]) -> Any:
            return {
                "pid": os.getpid(),
                "edge": f"http://{edge_address(self._settings)}",
                "state_dir": str(self._folder.path),
                "services": [row.as_json() for row in self._supervisor.status()],
            }

        async def restart(request: Mapping[str, Any]) -> Any:
            return await self._supervisor.restart(str(request.get("service", "")))

        async def stop(request: Mapping[str, Any]) -> Any:
            return await self._supervisor.stop_one(str(request.get("service", "")))

        async def down(_: Mapping[str, Any]) -> Any:
            self._stop.set()
            return {"pid": os.getpid()}

        return {"status": status, "restart": restart, "stop": stop, "down": down}

    def _interrupted(self) -> None:
        if self._stop.is_set():
            self._supervisor.kill()
            os._exit(_EXIT_NOW)
        self._stop.set()

    def _open_log(self, name: str) -> LogFile:
        limit_bytes, count = self._settings.log_limit_bytes, self._settings.log_file_count
        log = LogFile(self._folder.log_of(name), limit_bytes, count)
        self._logs.callback(log.close)
        return log

    def _tell(self, service: str, text: str) -> None:
        self._journal.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {service} {text}\n".encode())
        with _unless_nobody_reads():
            say(f"  {service:<10} {text}")


@contextmanager
def _unless_nobody_reads() -> Iterator[None]:
    """Print in this block: a terminal that was closed, or a reader that left, must not end the services."""
    # rich ends the process when its pipe is broken.
    with suppress(OSError, ValueError, SystemExit):
        yield


def _patience(settings: StackSettings) -> Patience:
    policy = RestartPolicy(
        first_wait_s=settings.restart_first_wait_s,
        longest_wait_s=settings.restart_longest_wait_s,
        crash_limit=settings.crash_limit,
        crash_window_s=settings.crash_window_s,
    )
    return Patience(settings.start_timeout_s, settings.stop_timeout_s, policy)
