"""The supervisor as a process of its own: order, signals, control socket, and its own violent death."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from interlock_cli.errors import CommandFailed
from interlock_cli.stack.control import ask
from interlock_cli.stack.state_folder import StateFolder

ROOT = Path(__file__).parents[3]
STACK = ROOT / "tests" / "fakes" / "children" / "stack.py"


@dataclass
class Stack:
    """A running supervisor and what it printed so far."""

    process: asyncio.subprocess.Process
    folder: StateFolder
    printed: list[str]

    async def says(self, text: str) -> str:
        """Return the first line from now on that holds `text`."""
        assert self.process.stdout is not None
        while line := (await asyncio.wait_for(self.process.stdout.readline(), 20)).decode():
            self.printed.append(line)
            if text in line:
                return line
        pytest.fail(f"never said {text!r}: {''.join(self.printed)}")

    async def ask(self, **request: Any) -> Any:
        return await ask(self.folder.control_socket, request, timeout_s=20)

    async def pids(self) -> dict[str, int]:
        return {row["name"]: row["pid"] for row in (await self.ask(do="status"))["services"]}

    async def ended(self) -> int:
        assert self.process.stdout is not None
        self.printed.append((await asyncio.wait_for(self.process.stdout.read(), 20)).decode())
        return await asyncio.wait_for(self.process.wait(), 20)


@asynccontextmanager
async def running_stack(
    folder: StateFolder, kinds: str = "", stdout: int = asyncio.subprocess.PIPE
) -> AsyncIterator[Stack]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}", "TEST_KINDS": kinds}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(STACK), str(folder.path), env=environment, stdout=stdout
    )
    try:
        yield Stack(process, folder, [])
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


async def test_services_start_in_order_and_drain_in_the_other(folder: StateFolder) -> None:
    async with running_stack(folder) as stack:
        await stack.says("Ctrl-C drains")
        ready = [line.split()[0] for line in stack.printed if "ready, pid" in line]
        assert ready == ["back", "middle", "front"]
        stack.process.send_signal(signal.SIGTERM)
        assert await stack.ended() == 0
        stopped = [line.split()[0] for line in "".join(stack.printed).splitlines() if "stopped (exit code 0)" in line]
        assert stopped == ["front", "middle", "back"]
    assert not folder.control_socket.exists() or not await _answers(folder)


async def test_status_tells_state_pid_uptime_restarts_and_address(folder: StateFolder) -> None:
    async with running_stack(folder) as stack:
        await stack.says("Ctrl-C drains")
        answer = await stack.ask(do="status")
        assert answer["pid"] == stack.process.pid
        assert [row["name"] for row in answer["services"]] == ["front", "middle", "back"]
        row = answer["services"][0]
        assert (row["state"], row["restart_count"], row["address"]) == ("ready", 0, "front.example")
        assert row["uptime_s"] >= 0
        assert psutil.pid_exists(row["pid"])


async def test_restart_over_the_control_socket_replaces_one_process(folder: StateFolder) -> None:
    async with running_stack(folder) as stack:
        await stack.says("Ctrl-C drains")
        before = await stack.pids()
        assert await stack.ask(do="restart", service="middle") == "exit code 0"
        after = await stack.pids()
        assert after["middle"] != before["middle"]
        assert {**after, "middle": 0} == {**before, "middle": 0}
        with pytest.raises(CommandFailed, match="no service is called 'nobody'"):
            await stack.ask(do="restart", service="nobody")
        with pytest.raises(CommandFailed, match="unknown request; want one of status, restart, stop, down"):
            await stack.ask(do="dance")


async def test_a_service_can_be_left_stopped_and_started_again(folder: StateFolder) -> None:
    async with running_stack(folder) as stack:
        await stack.says("Ctrl-C drains")
        assert await stack.ask(do="stop", service="middle") == "exit code 0"
        rows = {row["name"]: (row["state"], row["pid"]) for row in (await stack.ask(do="status"))["services"]}
        assert rows["middle"] == ("stopped", None)
        assert await stack.ask(do="restart", service="middle") == "it was not running"
        assert runs((await stack.pids())["middle"])


async def test_down_drains(folder: StateFolder) -> None:
    async with running_stack(folder) as stack:
        await stack.says("Ctrl-C drains")
        assert (await stack.ask(do="down"))["pid"] == stack.process.pid
        assert await stack.ended() == 0
        with pytest.raises(CommandFailed, match="no stack runs on"):
            await stack.ask(do="status")


async def test_a_crash_loop_shows_the_last_lines_and_leaves_the_others_running(folder: StateFolder) -> None:
    async with running_stack(folder, "middle=die") as stack:
        await stack.says("3 failures in a row, left stopped")
        await stack.says("| die runs as")
        wanted = {"front": "ready", "middle": "failed", "back": "ready"}
        async with asyncio.timeout(20):
            while {row["name"]: row["state"] for row in (await stack.ask(do="status"))["services"]} != wanted:
                await asyncio.sleep(0.02)


async def test_a_service_that_cannot_start_ends_the_stack_with_its_last_lines(folder: StateFolder) -> None:
    async with running_stack(folder, "middle=crash") as stack:
        assert await stack.ended() == 1
        text = "".join(stack.printed)
        assert "| no configuration found" in text
        assert "FAILED middle cannot be started: it ended before it was ready (exit code 3)" in text
        assert "back       stopped (exit code 0)" in text, "what had started was drained"


async def test_a_second_signal_ends_everything_at_once(folder: StateFolder) -> None:
    async with running_stack(folder, "front=stubborn") as stack:
        await stack.says("Ctrl-C drains")
        pids = await stack.pids()
        stack.process.send_signal(signal.SIGINT)
        await stack.says("Ctrl-C again")
        stack.process.send_signal(signal.SIGINT)
        assert await stack.ended() == 130
        await until(lambda: not any(map(runs, pids.values())))


async def test_a_supervisor_that_is_killed_leaves_no_process(folder: StateFolder) -> None:
    async with running_stack(folder, "front=stubborn") as stack:
        await stack.says("Ctrl-C drains")
        pids = await stack.pids()
        stack.process.kill()
        await stack.process.wait()
        await until(lambda: not any(map(runs, pids.values())))
    async with running_stack(folder) as second:
        await second.says("Ctrl-C drains")


async def test_a_service_that_had_to_be_killed_shows_in_the_exit_code(folder: StateFolder) -> None:
    async with running_stack(folder, "middle=stubborn") as stack:
        await stack.says("Ctrl-C drains")
        stack.process.send_signal(signal.SIGTERM)
        assert await stack.ended() == 1
        assert "middle     stopped (signal SIGKILL)" in "".join(stack.printed)


async def test_services_go_on_when_nobody_reads_what_the_supervisor_prints(folder: StateFolder) -> None:
    reader, writer = os.pipe()
    async with running_stack(folder, stdout=writer) as stack:
        os.close(writer)
        async with asyncio.timeout(20):
            while not await _answers(folder) or None in (await stack.pids()).values():
                await asyncio.sleep(0.02)
        os.close(reader)
        before = await stack.pids()
        os.kill(before["back"], signal.SIGKILL)
        async with asyncio.timeout(20):
            while (await stack.pids())["back"] in (None, before["back"]):
                await asyncio.sleep(0.02)
            while {row["state"] for row in (await stack.ask(do="status"))["services"]} != {"ready"}:
                await asyncio.sleep(0.02)
        assert await stack.ask(do="restart", service="back") == "exit code 0"


async def test_a_request_that_is_no_json_gets_an_answer(folder: StateFolder) -> None:
    async with running_stack(folder) as stack:
        await stack.says("Ctrl-C drains")
        reader, writer = await asyncio.open_unix_connection(folder.control_socket)
        writer.write(b"hello\n")
        assert "want one line of JSON" in json.loads(await reader.readline())["error"]
        writer.close()


async def _answers(folder: StateFolder) -> bool:
    try:
        await ask(folder.control_socket, {"do": "status"}, timeout_s=5)
    except CommandFailed:
        return False
    return True


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
