"""What a stack refuses to start beside, and what it leaves behind."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from services.common.settings import PORTS
from tests.e2e.stack import ROOT, Stack, new_stack

pytestmark = pytest.mark.timeout(240)


def _up(stack: Stack, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Try to start a stack that must be refused."""
    other = Stack(stack.folder, stack.offset, {**stack.environment, **variables})
    return other.command("up", timeout_s=60)


def test_a_port_that_is_taken_is_named_with_its_holder_and_the_setting_that_moves_it() -> None:
    with new_stack("grpcio") as stack, socket.socket() as holder:
        holder.bind(("127.0.0.1", PORTS["registry"] + stack.offset))
        holder.listen()
        done = stack.command("up", timeout_s=60)
        assert done.returncode == 1
        assert f"port {PORTS['registry'] + stack.offset} (registry: gRPC) is held by pid {os.getpid()}" in done.stderr
        assert "INTERLOCK_PORT_OFFSET" in done.stderr
        assert "Traceback" not in done.stderr
        found = {finding["name"]: finding for finding in json.loads(stack.command("doctor", "--json").stdout)}
        assert not found["ports"]["good"]


def test_a_second_stack_on_the_same_folder_or_ports_is_refused(stack: Stack) -> None:
    same_folder = _up(stack, INTERLOCK_PORT_OFFSET="31000")
    assert same_folder.returncode == 1
    assert f"a stack already runs on {stack.folder} (pid {stack.process.pid})" in same_folder.stderr
    with new_stack("grpcio", INTERLOCK_PORT_OFFSET=str(stack.offset)) as other:
        same_ports = other.command("up", timeout_s=60)
    assert same_ports.returncode == 1
    assert f"port {PORTS['edge'] + stack.offset}" in same_ports.stderr
    assert "is held by pid" in same_ports.stderr
    assert stack.is_ready(), "the first one has noticed nothing"


@pytest.mark.parametrize("door", ["envoy", "grpcio"])
def test_a_killed_supervisor_leaves_no_process_and_the_next_stack_starts_where_it_was(door: str) -> None:
    with new_stack(door) as stack:
        stack.start()
        processes = stack.processes()
        names = " ".join(" ".join(process.cmdline()) for process in processes)
        assert "envoy" in names
        assert "redis-server" in names
        stack.process.send_signal(signal.SIGKILL)
        stack.process.wait(10)
        gone, alive = psutil.wait_procs(processes, timeout=15)
        assert not alive, [process.cmdline() for process in alive]
        assert len(gone) == len(processes)
        stack.start()
        assert stack.stop() == 0


def test_up_with_the_demo_prints_three_commands_that_work() -> None:
    with new_stack("envoy") as stack:
        stack.start("--demo")
        printed = stack.folder / "up.out"
        stack.wait_until(lambda: "Ctrl-C drains" in printed.read_text("utf-8"), "the demo is over", 180)
        after = printed.read_text("utf-8").partition("try:")[2]
        commands = [line.strip() for line in after.splitlines() if line.startswith("  ")]
        assert len(commands) == 3
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        for command in commands:
            done = subprocess.run(
                command, shell=True, cwd=ROOT, env={**stack.environment, "PATH": path},
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            assert "flight-delay" in done.stdout or "on_time" in done.stdout or "late" in done.stdout, command


def test_down_drains_in_order_and_the_command_waits_for_the_end() -> None:
    with new_stack("grpcio") as stack:
        stack.start()
        processes = stack.processes()
        assert "is down" in stack.succeed("down")
        stack.process.wait(10)
        assert not any(process.is_running() for process in processes)
        story = (stack.folder / "up.out").read_text("utf-8").splitlines()
        stopped = [line.split()[0] for line in story if "stopped (exit code 0)" in line]
        assert stopped == ["edge", "router", "inference", "features", "registry", "monitor", "redis"]


def test_logs_of_every_service_are_in_one_place(stack: Stack) -> None:
    logs = {path.stem for path in (stack.folder / "logs").glob("*.log")}
    assert logs == {*stack.status(), "stack"}
    assert "serving" in stack.succeed("logs", "registry", "-n", "1000000")
    done = stack.command("logs", "nobody")
    assert done.returncode == 1
    assert "there is no log of 'nobody'" in done.stderr
