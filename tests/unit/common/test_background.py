"""Tasks, retries, the supervisor's socket and the health board."""

import asyncio
import gc
import socket
from pathlib import Path

import grpc
import pytest
import structlog
from structlog.testing import capture_logs

from services.common.errors import InvalidArgument, Unavailable
from services.common.health import HealthBoard
from services.common.notify import READY, notify
from services.common.retry import is_passing, retry
from services.common.tasks import spawn


@pytest.fixture(autouse=True)
def _default_logs() -> None:
    structlog.reset_defaults()


async def test_a_failed_task_is_logged_once_by_name() -> None:
    async def fail() -> None:
        raise ValueError("broken")

    with capture_logs() as logs:
        task = spawn(fail(), "worker-7")
        await asyncio.wait([task])
        await asyncio.sleep(0)
    assert [(line["event"], line["task"]) for line in logs] == [("task_failed", "worker-7")]


async def test_a_task_that_exits_does_not_end_the_loop() -> None:
    async def leave() -> None:
        raise SystemExit(3)

    with capture_logs():
        task = spawn(leave(), "leaver")
        await asyncio.wait([task])
    assert isinstance(task.exception(), RuntimeError)


async def test_a_task_nobody_holds_runs_to_its_end() -> None:
    done = asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(0.01)
        done.set()

    spawn(work(), "held")
    gc.collect()
    await asyncio.wait_for(done.wait(), 5)


async def test_a_cancelled_task_is_no_failure() -> None:
    with capture_logs() as logs:
        task = spawn(asyncio.sleep(60), "sleeper")
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)
    assert logs == []


async def test_work_is_retried_until_it_succeeds() -> None:
    tries = 0

    async def work() -> int:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise Unavailable("not yet", reason="X")
        return tries

    with capture_logs() as logs:
        assert await retry(work, "opening", give_up_after_s=5, first_wait_s=0.001) == 3
    assert [(line["what"], line["attempt"]) for line in logs] == [("opening", 1), ("opening", 2)]


async def test_what_cannot_pass_is_not_retried() -> None:
    tries = 0

    async def work() -> None:
        nonlocal tries
        tries += 1
        raise InvalidArgument("never", reason="X")

    with pytest.raises(InvalidArgument):
        await retry(work, "opening", give_up_after_s=5)
    assert tries == 1


async def test_the_last_error_comes_out_when_time_is_over() -> None:
    async def work() -> None:
        raise ConnectionRefusedError

    with capture_logs(), pytest.raises(ConnectionRefusedError):
        await retry(work, "opening", give_up_after_s=0.05, first_wait_s=0.01, longest_wait_s=0.02)


@pytest.mark.parametrize(
    ("code", "passing"),
    [(grpc.StatusCode.UNAVAILABLE, True), (grpc.StatusCode.DEADLINE_EXCEEDED, True), (grpc.StatusCode.INTERNAL, False)],
)
def test_a_peers_code_says_whether_to_retry(code: grpc.StatusCode, passing: bool) -> None:
    assert is_passing(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata())) is passing


def test_the_supervisor_hears_ready(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "n"))
        notify(str(tmp_path / "n"), READY, "STATUS=warm")
        assert supervisor.recv(100) == b"READY=1\nSTATUS=warm"


def test_the_supervisor_may_listen_on_an_abstract_socket(tmp_path: Path) -> None:
    name = f"il-{abs(hash(tmp_path))}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(f"\0{name}")
        notify(f"@{name}", READY)
        assert supervisor.recv(100) == b"READY=1"


def test_a_supervisor_that_is_gone_is_no_error(tmp_path: Path) -> None:
    notify("", READY)
    with capture_logs() as logs:
        notify(str(tmp_path / "gone"), READY)
    assert [line["event"] for line in logs] == ["supervisor_unreachable"]


async def test_opening_the_board_leaves_alone_what_was_said_before() -> None:
    board = HealthBoard()
    assert not board.ready
    board.set("slow.Service", serving=False)
    board.open(["slow.Service", "fast.Service"])
    assert board.ready
    assert board.serving == {"": True, "slow.Service": False, "fast.Service": True}


async def test_nothing_serves_again_once_draining() -> None:
    board = HealthBoard()
    board.open(["a"])
    board.drain()
    board.set("a", serving=True)
    board.open(["b"])
    assert (board.draining, board.ready, set(board.serving.values())) == (True, False, {False})
