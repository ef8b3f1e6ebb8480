"""What a stack refuses to start beside, and what it leaves behind."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from services.common.settings import PORTS
from tests.e2e.stack import ROOT, Stack, new_stack
from tests.fakes.browser import render

pytestmark = pytest.mark.timeout(240)

README = (ROOT / "README.md").read_text("utf-8")
# From nothing, on two cores.
DEMO_S = 180.0


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


def test_up_with_the_demo_is_there_in_three_minutes_and_shows_what_the_readme_shows() -> None:
    with new_stack("envoy") as stack:
        begun = time.monotonic()
        stack.start("--demo")
        out = stack.folder / "up.out"
        left_s = begun + DEMO_S - time.monotonic()
        stack.wait_until(lambda: "Ctrl-C drains" in out.read_text("utf-8"), "the demo is over", left_s)
        printed = out.read_text("utf-8")
        commands = [line.strip() for line in printed.partition("try:")[2].splitlines() if line.startswith("  ")]
        assert len(commands) == 3
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        said = []
        for command in commands:
            done = subprocess.run(
                command, shell=True, cwd=ROOT, env={**stack.environment, "PATH": path},
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            said.append(done.stdout)
        assert "flight-delay" in said[2]
        _check_figures(printed)
        _check_answer(json.loads(said[0]))
        _check_storm(stack)
        (report, _) = re.findall(r"^report on version \d: (http://\S+)$", printed, re.MULTILINE)
        _check_report(report)


def _check_figures(printed: str) -> None:
    """Compare the monitor's table with the README's: the same labels, and the same figures but for the last digits."""
    shown, readme = _verdicts(printed), _verdicts(README)
    assert shown.keys() == readme.keys() == {"1", "2"}
    # Said when a busy machine made some flights of version 2 go without live features.
    compared = ("1",) if "had to do without live features" in printed else ("1", "2")
    for version in compared:
        assert shown[version] == pytest.approx(readme[version], abs=0.003), version
    assert shown["2"][0] == readme["2"][0]


def _verdicts(text: str) -> dict[str, list[float]]:
    """Labels, then AUC and Brier score with their intervals, by version."""
    lines = text.partition("What the monitor says of the replay (95 % intervals)")[2].splitlines()[2:4]
    cells = [re.findall(r"[\d.,]+", line) for line in lines]
    return {version: [float(cell.replace(",", "")) for cell in rest] for version, *rest in cells}


def _check_answer(answer: dict[str, Any]) -> None:
    """Compare the answer to the README's first call with the one that stands there."""
    (block,) = re.findall(r"^```json\n(.*)\n```$", README, re.MULTILINE)
    shown = json.loads(block)
    assert answer.keys() == shown.keys()
    assert answer["confidence"] == pytest.approx(shown["confidence"], abs=0.002)
    different = {"prediction_id", "confidence", "latency_ms", "config_epoch"}
    assert {key: answer[key] for key in shown.keys() - different} == {
        key: shown[key] for key in shown.keys() - different
    }


def _check_storm(stack: Stack) -> None:
    """Do what the README does with live features: a calm night, a storm, and no entities."""
    calls = re.findall(r"^curl localhost:8080(/v1/\S+) .*? -d '(\{.*NIGHT.*\})'$", README, re.MULTILINE)
    night = f"{datetime.now(UTC) + timedelta(days=4):%Y-%m-%dT08:00:00Z}"
    (ask, body), (push, storm) = [
        (f"http://{stack.edge}{path}", json.loads(content.replace("'$NIGHT'", night))) for path, content in calls
    ]
    confidences = re.search(r"It is on time with ([\d.]+).*now it is late, with ([\d.]+)", README, re.DOTALL)
    assert confidences is not None
    answers: list[dict[str, Any]] = []

    def answered_whole() -> bool:
        """Whether the values came in time, which a busy machine may prevent."""
        answer = httpx.post(ask, json=body, timeout=10).json()
        if not answer["degraded"]:
            answers.append(answer)
        return not answer["degraded"]

    for _ in range(2):
        stack.wait_until(answered_whole, "an answer with live features")
        assert httpx.post(push, json=storm, timeout=10).is_success
    assert [answer["label"] for answer in answers] == ["on_time", "late"]
    shown = [float(found.rstrip(".")) for found in confidences.groups()]
    assert [answer["confidence"] for answer in answers] == pytest.approx(shown, abs=0.003)
    degraded = httpx.post(ask, json={key: value for key, value in body.items() if key != "entities"}, timeout=10).json()
    assert degraded["degraded"] == ["features_default"]


def _check_report(url: str) -> None:
    """The page whose address the demo prints, through the door, in a browser."""
    rendered = render(url)
    assert (rendered.requested, rendered.problems, rendered.overflow) == ([url], [], 0)
    assert "flight-delay, version 1" in rendered.text
    assert len(rendered.plots) > 8
    assert all(plot["width"] > 300 and plot["height"] > 100 for plot in rendered.plots)


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
