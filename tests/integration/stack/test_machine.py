"""What the command finds out about a real machine."""

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from interlock_cli.doctor.examination import examine
from interlock_cli.doctor.finding import Finding
from interlock_cli.errors import CommandFailed
from interlock_cli.settings import StackSettings
from interlock_cli.stack.log_file import LogFile
from interlock_cli.stack.port_check import require_free, taken_ports
from interlock_cli.stack.redis import answers_ping, find_redis, redis_spec
from interlock_cli.stack.service import Patience, Service, State
from interlock_cli.stack.spec import Port
from interlock_cli.stack.state_folder import StateFolder, stack_lock
from services.common.edge.installation import shared_libpython
from tests.fakes.ports import free_offset


def findings(settings: StackSettings) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(settings)}


def test_a_machine_that_can_run_the_stack_is_found_good(folder: StateFolder) -> None:
    found = findings(StackSettings(state_dir=folder.path, port_offset=free_offset()))
    for name in ("python", "shared libpython", "envoy", "redis", "descriptor set", "state folder", "ports", "clock"):
        assert found[name].good, found[name]


def test_every_bad_finding_says_what_to_do(folder: StateFolder) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        offset = holder.getsockname()[1] - 9004
        long = folder.path / ("x" * 100)
        found = findings(StackSettings(state_dir=long, port_offset=offset, redis_server=Path("/nowhere")))
    assert {name for name, finding in found.items() if not finding.good} >= {"redis", "socket paths", "ports"}
    assert all(finding.fix for finding in found.values() if not finding.good)
    assert "INTERLOCK_STATE_DIR" in found["socket paths"].fix


def test_the_ports_of_the_stack_that_runs_here_are_no_problem(folder: StateFolder) -> None:
    with stack_lock(folder, 0):
        assert f"pid {os.getpid()}" in findings(StackSettings(state_dir=folder.path))["ports"].detail


def test_a_taken_port_is_shown_with_its_holder_even_when_it_is_shared() -> None:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        number = holder.getsockname()[1]
        taken = taken_ports("127.0.0.1", [("registry", Port(number, "gRPC"))])
    assert [(one.port.number, one.pid) for one in taken] == [(number, os.getpid())]
    with pytest.raises(
        CommandFailed, match=f"port {number} \\(registry: gRPC\\) is held by pid {os.getpid()} \\(.*python"
    ):
        require_free(taken)
    assert taken_ports("127.0.0.1", [("registry", Port(number, "gRPC"))]) == []


async def test_redis_starts_answers_and_keeps_what_it_was_told(folder: StateFolder) -> None:
    settings = StackSettings(state_dir=folder.path)
    server = find_redis(settings)
    assert server is not None
    log = LogFile(folder.log_of("redis"), 1 << 20, 2)
    service = Service(redis_spec(settings, folder), folder.run, log, Patience(), lambda *_: None)
    try:
        await service.start()
        assert service.state is State.READY
        assert await answers_ping(folder.redis_socket)
        assert oct(folder.redis_socket.stat().st_mode & 0o777) == "0o700"
        assert await _say(folder.redis_socket, b"SET flight B6\r\n") == b"+OK\r\n"
        assert str(await service.replace()) == "exit code 0"
        assert await _say(folder.redis_socket, b"GET flight\r\n") == b"$2\r\nB6\r\n"
    finally:
        await service.stop()
        log.close()


async def _say(path: Path, command: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(command)
    answer = await reader.readuntil(b"\r\n")
    if answer.startswith(b"$"):
        answer += await reader.readuntil(b"\r\n")
    writer.close()
    return answer


def test_this_python_can_run_inside_envoy() -> None:
    assert shared_libpython() is not None, f"{sys.executable} has no shared libpython: half of the doors go untested"
