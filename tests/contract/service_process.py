"""A service as a process of its own, with nothing around it."""

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from interlock_cli.stack.ready_socket import ReadySocket
from services.common.settings import PORTS
from tests.contract.descriptors import ROOT
from tests.fakes.ports import free_offset

START_TIMEOUT_S = 40.0
STOP_TIMEOUT_S = 20.0


@asynccontextmanager
async def running_service(name: str) -> AsyncIterator[str]:
    """Run `python -m services.<name>` until the block ends; gives its gRPC address."""
    folder, offset = Path(tempfile.mkdtemp(prefix="il-")), free_offset()
    notifications = ReadySocket(folder / "notify")
    environment = {
        **os.environ,
        "INTERLOCK_STATE_DIR": str(folder),
        "INTERLOCK_PORT_OFFSET": str(offset),
        "INTERLOCK_DOOR": "grpcio",
        "INTERLOCK_DRAIN_DELAY_S": "0",
        # There is no registry that could say which versions to wait for.
        "INTERLOCK_INFERENCE_START_WAIT_S": "0",
        "NOTIFY_SOCKET": str(notifications.path),
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "gen"))),
    }
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", f"services.{name}", env=environment, stdout=log, stderr=log
        )
    try:
        await _ready_or_ended(notifications, process)
        assert notifications.ready.is_set(), f"{name} did not start:\n{(folder / 'log').read_text()}"
        yield f"127.0.0.1:{PORTS[name] + offset}"
    finally:
        notifications.close()
        await _end(process)
        shutil.rmtree(folder, ignore_errors=True)


async def _ready_or_ended(notifications: ReadySocket, process: asyncio.subprocess.Process) -> None:
    both = [asyncio.ensure_future(notifications.ready.wait()), asyncio.ensure_future(process.wait())]
    await asyncio.wait(both, timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
    for one in both:
        one.cancel()
    await asyncio.gather(*both, return_exceptions=True)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
