"""Runs offline work in child processes, so many at a time, and tells what became of it."""

import asyncio
import errno
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

import grpc
import pyarrow as pa
import structlog
from google.rpc import code_pb2, error_details_pb2
from google.rpc.status_pb2 import Status

from services.common.child_process import ChildProcess
from services.common.errors import INTERNAL, ServiceError, Violation, status_reason
from services.common.storage_failure import NO_ROOM, StorageFull
from services.features.adapters.engine_limits import EngineLimits
from services.features.adapters.offline_task import (
    OUTPUT_FILE,
    ROWS_FILE,
    OfflineTask,
    StreamJoinTask,
    TaskResult,
    read_error,
    read_progress,
    read_result,
    write_task,
)
from services.features.domain.file_roots import FileRoots
from services.features.domain.point_in_time import HistoryFiles, JoinPlan
from services.features.domain.ports import History

_LOG: Final = structlog.get_logger(part="offline")
_ROOT: Final = Path(__file__).resolve().parents[3]
_PROGRESS_INTERVAL_S: Final = 0.25
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class WorkFailed(ServiceError):
    """What a child process found; code, reason and details are its own."""

    def __init__(self, status: Status) -> None:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        violations: list[Violation] = []
        for detail in status.details:
            if not detail.Unpack(info) and detail.Unpack(bad):
                violations = [Violation(each.field, each.description) for each in bad.field_violations]
        super().__init__(
            status.message,
            reason=status_reason(status) or INTERNAL,
            metadata=dict(info.metadata),
            violations=violations,
        )
        self.code = _CODES.get(status.code, grpc.StatusCode.INTERNAL)  # type: ignore[misc]


class OfflineProcesses:
    """Starts children, at most `parallelism` at a time; work that has to wait does so in the order it came."""

    def __init__(
        self,
        folder: Path,
        limits: EngineLimits,
        connections: Mapping[str, str],
        roots: FileRoots,
        *,
        parallelism: int,
    ) -> None:
        self._folder = folder / str(os.getpid())
        self._limits = limits
        self._access = json.dumps({"connections": dict(connections), "roots": list(roots.uris)}).encode() + b"\n"
        self._slots = asyncio.Semaphore(parallelism)

    def clear(self) -> None:
        """Remove what children of processes that have ended left; one that hands over to this one is still at work."""
        for left in self._folder.parent.glob("*"):
            if left.name == self._folder.name or not _is_alive(left.name):
                shutil.rmtree(left, ignore_errors=True)
        self._folder.mkdir(parents=True, mode=0o700)

    @asynccontextmanager
    async def folder(self) -> AsyncIterator[Path]:
        """Open a folder for one piece of work; it is removed when the block ends. Raises StorageFull from within it."""
        path = self._folder / uuid4().hex
        try:
            path.mkdir(mode=0o700)
            yield path
        except OSError as error:
            if error.errno in NO_ROOM:
                raise StorageFull("features") from error
            raise
        finally:
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)

    async def run(
        self, folder: Path, task: OfflineTask, on_progress: Callable[[int, int], None] = lambda _done, _total: None
    ) -> TaskResult:
        """Do the work in a child and return what came of it; raises WorkFailed. Cancelled, it ends the child."""
        limits = EngineLimits(
            str(folder / "spill"), self._limits.memory_mib, self._limits.temp_mib, self._limits.threads
        )
        await asyncio.to_thread(write_task, folder, task, limits)
        async with self._slots:
            child = ChildProcess([sys.executable, "-m", "services.features.worker", str(folder)], _ROOT, [])
            try:
                child.write(self._access)
                while not child.ended.done():
                    await asyncio.wait([child.ended], timeout=_PROGRESS_INTERVAL_S)
                    on_progress(*read_progress(folder))
            finally:
                if not child.ended.done():
                    child.kill()
                code = await asyncio.shield(child.ended)
        if code == errno.ENOSPC:
            raise StorageFull("features")
        result, status = read_result(folder), read_error(folder)
        if result is not None:
            return result
        if status is None or status.code == code_pb2.INTERNAL:
            _LOG.error("offline_work_failed", task=task.task, exit_code=code, last_lines=list(child.lines)[-8:])
        raise WorkFailed(status or _ended_early(code))


def _is_alive(process: str) -> bool:
    return process.isdecimal() and Path("/proc", process).exists()


def _ended_early(code: int) -> Status:
    status = Status(
        code=code_pb2.RESOURCE_EXHAUSTED if code < 0 else code_pb2.INTERNAL,
        message=f"the process of this work ended with {code}; if it was killed, it needed more memory than there is",
    )
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason="WORK_ENDED" if code < 0 else INTERNAL, domain="interlock")
    )
    return status


async def history_files(history: History, views: tuple[str, ...], folder: Path) -> dict[str, HistoryFiles]:
    """Return where the histories of views lie now; what is in no file yet is written into the folder."""
    found = {}
    for number, view in enumerate(views):
        scan = await history.scan(view)
        tail = ""
        if scan.tail is not None and len(scan.tail):
            tail = str(folder / f"tail-{number}.arrow")
            await asyncio.to_thread(_write_table, tail, scan.tail)
        found[view] = HistoryFiles(tuple(scan.parts), tail)
    return found


def _write_table(path: str, table: pa.Table) -> None:
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


class StreamJoins:
    """Joins rows that stand in a file; see `offline_feature_service.StreamJoiner`."""

    def __init__(self, processes: OfflineProcesses, history: History) -> None:
        self._processes = processes
        self._history = history

    def folder(self) -> AbstractAsyncContextManager[Path]:
        """Open a folder for one join."""
        return self._processes.folder()

    def rows_file(self, folder: Path) -> Path:
        """Return where the rows have to be put, as an Arrow stream."""
        return folder / ROWS_FILE

    async def join(self, folder: Path, plan: JoinPlan) -> Path:
        """Return where the rows with the features are, as an Arrow stream."""
        histories = await history_files(self._history, plan.history_views, folder)
        await self._processes.run(folder, StreamJoinTask(plan=plan, histories=histories))
        return folder / OUTPUT_FILE
