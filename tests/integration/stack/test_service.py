"""One supervised service, with real processes."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest

from interlock_cli.errors import CommandFailed
from interlock_cli.stack.backoff import RestartPolicy
from interlock_cli.stack.log_file import LogFile
from interlock_cli.stack.service import Patience, Service, StartFailed, State
from interlock_cli.stack.spec import ServiceSpec
from interlock_cli.stack.state_folder import StateFolder
from tests.integration.stack.conftest import child_spec

QUICK = RestartPolicy(first_wait_s=0.01, longest_wait_s=0.02, crash_limit=3, crash_window_s=60.0)


@dataclass
class Running:
    """A service, what it told, and where its log is."""

    service: Service
    log: Path
    told: list[str] = field(default_factory=list)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.01)


@asynccontextmanager
async def supervised(
    folder: StateFolder, spec: ServiceSpec, *, start_s: float = 20.0, stop_s: float = 20.0
) -> AsyncIterator[Running]:
    log = LogFile(folder.log_of(spec.name), 1 << 20, 2)
    told: list[str] = []
    patience = Patience(start_s=start_s, stop_s=stop_s, policy=QUICK, life_interval_s=0.02, life_timeout_s=0.05)
    service = Service(spec, folder.run, log, patience, lambda _, text: told.append(text))
    try:
        yield Running(service, folder.log_of(spec.name), told)
    finally:
        service.kill()
        await service.stop()
        log.close()


async def test_a_service_is_ready_when_it_says_so_and_drains_when_asked(folder: StateFolder) -> None:
    async with supervised(folder, child_spec("serve")) as running:
        await running.service.start()
        assert running.service.state is State.READY
        assert running.service.pid is not None
        assert psutil.pid_exists(running.service.pid)
        ended = await running.service.stop()
        assert (str(ended), running.service.state) == ("exit code 0", State.STOPPED)
        assert running.service.pid is None
        assert "serve runs as" in running.log.read_text("utf-8")
    assert list(folder.run.iterdir()) == [], "no socket is left behind"


async def test_a_service_that_ends_before_it_is_ready_fails_the_start_at_once(folder: StateFolder) -> None:
    async with supervised(folder, child_spec("crash")) as running:
        with pytest.raises(StartFailed, match=r"ended before it was ready \(exit code 3\)"):
            await running.service.start()
        assert running.service.state is State.FAILED
        assert "no configuration found" in running.log.read_text("utf-8"), "standard error is in the log"


async def test_a_slow_start_is_given_up_and_the_process_killed(folder: StateFolder) -> None:
    async with supervised(folder, child_spec("mute"), start_s=0.3) as running:
        with pytest.raises(StartFailed, match=r"not ready after 0\.3 s"):
            await running.service.start()
        assert running.service.pid is None


async def test_a_program_that_is_not_there_fails_the_start(folder: StateFolder) -> None:
    async with supervised(folder, ServiceSpec("thing", ("/no/such/program",), {}, "")) as running:
        with pytest.raises(StartFailed, match="cannot be started: No such file"):
            await running.service.start()


async def test_a_service_that_is_killed_starts_again(folder: StateFolder) -> None:
    async with supervised(folder, child_spec("serve")) as running:
        await running.service.start()
        first = running.service.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await running.until(lambda: running.service.restart_count == 1 and running.service.state is State.READY)
        assert running.service.pid not in (None, first)
        assert any("ended by itself (signal SIGKILL)" in text for text in running.told)


async def test_a_service_that_answers_nobody_any_more_is_killed_and_starts_again(folder: StateFolder) -> None:
    silent = False

    async def lives() -> bool:
        if silent:
            await asyncio.Event().wait()
        return True

    async with supervised(folder, replace(child_spec("serve"), life=lives)) as running:
        await running.service.start()
        first = running.service.pid
        silent = True
        await running.until(lambda: running.service.restart_count == 1)
        silent = False
        await running.until(lambda: running.service.state is State.READY)
        assert running.service.pid not in (None, first)
        assert f"pid {first} answers nobody any more and is killed" in running.told


async def test_a_crash_loop_is_left_stopped(folder: StateFolder) -> None:
    async with supervised(folder, child_spec("die")) as running:
        await running.service.start()
        await running.until(lambda: running.service.state is State.FAILED)
        assert running.service.restart_count == QUICK.crash_limit - 1
        assert running.told[-1].endswith("3 failures in a row, left stopped")
        assert running.log.read_text("utf-8").count("die runs as") == QUICK.crash_limit


async def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(folder: StateFolder) -> None:
    async with supervised(folder, child_spec("stubborn"), stop_s=0.3) as running:
        await running.service.start()
        assert str(await running.service.stop()) == "signal SIGKILL"


async def test_what_a_crashed_process_leaves_behind_is_killed_too(folder: StateFolder) -> None:
    async with supervised(folder, child_spec("parent")) as running:
        await running.service.start()
        grandchild = int(running.log.read_text("utf-8").split("grandchild ")[1].split()[0])
        assert running.service.pid is not None
        os.kill(running.service.pid, signal.SIGKILL)
        await running.until(lambda: not _runs(grandchild))


async def test_a_replacement_is_ready_before_the_old_process_ends(folder: StateFolder) -> None:
    async with supervised(folder, child_spec("serve")) as running:
        await running.service.start()
        first = running.service.pid
        assert str(await running.service.replace()) == "exit code 0"
        assert running.service.state is State.READY
        assert running.service.pid not in (None, first)
        assert running.service.restart_count == 0, "a replacement is no restart after a failure"
        lines = running.log.read_text("utf-8").splitlines()
        assert lines[0].endswith("replace=")
        assert lines[1].endswith("replace=1")


async def test_a_replacement_is_watched_like_the_first_process(folder: StateFolder) -> None:
    async with supervised(folder, child_spec("serve")) as running:
        await running.service.start()
        await running.service.replace()
        second = running.service.pid
        assert second is not None
        os.kill(second, signal.SIGKILL)
        await running.until(lambda: running.service.restart_count == 1 and running.service.state is State.READY)


async def test_a_service_that_cannot_share_is_stopped_before_its_replacement_starts(folder: StateFolder) -> None:
    async with supervised(folder, child_spec("serve", shares_port=False)) as running:
        await running.service.start()
        first = running.service.pid
        assert str(await running.service.replace()) == "exit code 0"
        assert running.service.pid not in (None, first)
        assert running.log.read_text("utf-8").splitlines()[1].endswith("replace=")


async def test_a_replacement_that_does_not_start_leaves_the_old_process_in_place(folder: StateFolder) -> None:
    switch = folder.path / "switch"
    script = f'if [ -e {switch} ]; then exit 7; fi; touch {switch}; exec "$@"'
    inner = child_spec("serve")
    spec = ServiceSpec("thing", ("/bin/sh", "-c", script, "sh", *inner.command), {}, "")
    async with supervised(folder, spec) as running:
        await running.service.start()
        first = running.service.pid
        with pytest.raises(CommandFailed, match=r"was not replaced: it ended before it was ready \(exit code 7\)"):
            await running.service.replace()
        assert (running.service.pid, running.service.state) == (first, State.READY)


async def test_a_stop_during_the_wait_for_a_restart_is_quick(folder: StateFolder) -> None:
    slow = RestartPolicy(first_wait_s=1000.0, longest_wait_s=1000.0, crash_limit=9)
    log = LogFile(folder.log_of("thing"), 1 << 20, 2)
    service = Service(child_spec("die"), folder.run, log, Patience(policy=slow), lambda *_: None)
    await service.start()
    async with asyncio.timeout(20):
        while str(service.state) != State.WAITING:
            await asyncio.sleep(0.01)
        await service.stop()
    assert str(service.state) == State.STOPPED
    log.close()


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
