"""Work for a child process, and what comes back: files in a folder of its own.

A huge join, a file that crashes a parser or a query that fills the memory ends the child, never the service. The parent
writes `task.json`, gives connections (credentials) and roots of files on standard input, and keeps that open: when the parent ends, the
child does. The child writes `progress.json` now and then, and `result.json` or `error.json` at the end.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from google.rpc.status_pb2 import Status
from pydantic import TypeAdapter

from services.features.adapters.engine_limits import EngineLimits
from services.features.domain.definitions import BatchSource, FeatureType
from services.features.domain.point_in_time import HistoryFiles, JoinPlan, PlannedFeature, PlannedKey

TASK_FILE: Final = "task.json"
PROGRESS_FILE: Final = "progress.json"
RESULT_FILE: Final = "result.json"
ERROR_FILE: Final = "error.pb"
ROWS_FILE: Final = "rows.arrow"
OUTPUT_FILE: Final = "output.arrow"
STAGED_FILE: Final = "staged.parquet"


@dataclass(frozen=True, kw_only=True)
class StreamJoinTask:
    """Joins to the rows in `rows.arrow` and writes `output.arrow`."""

    plan: JoinPlan
    histories: Mapping[str, HistoryFiles]
    task: str = "stream_join"


@dataclass(frozen=True, kw_only=True)
class TableJoinTask:
    """Joins to the rows of a batch source and writes Parquet files, named after the job, into an empty folder."""

    plan: JoinPlan
    histories: Mapping[str, HistoryFiles]
    rows: BatchSource
    output_uri: str
    job_id: str
    task: str = "table_join"


@dataclass(frozen=True, kw_only=True)
class StageTask:
    """Reads a batch source between two event times and writes `staged.parquet`, ordered by event time.

    `in_history` tells which rows the history has already.
    """

    source: BatchSource
    keys: tuple[PlannedKey, ...]
    features: tuple[PlannedFeature, ...]
    history: HistoryFiles
    start_us: int
    end_us: int
    known_us: int
    task: str = "stage"


@dataclass(frozen=True)
class LoggedFeature:
    """One feature to compare: its name in the log, `<view>.<feature>`, and what a model does with a value.

    `fallback` stands in for a missing one, `minimum` and `maximum` are to what it is clipped, and `precision` is the
    share of it that the type of its tensor may round away.
    """

    name: str
    source: str
    output: str
    type: FeatureType
    is_list: bool = False
    fallback: str | float | int | bool | None = None
    minimum: float | None = None
    maximum: float | None = None
    precision: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ParityTask:
    """Recomputes the predictions in `rows.arrow`, or the `vectors` of a table, and compares."""

    plan: JoinPlan
    histories: Mapping[str, HistoryFiles]
    features: tuple[LoggedFeature, ...]
    input_precisions: Mapping[str, float]
    relative_tolerance: float
    shifts_us: tuple[int, ...]
    vectors: BatchSource | None = None
    max_row_count: int
    task: str = "parity"


OfflineTask = StreamJoinTask | TableJoinTask | StageTask | ParityTask


@dataclass(frozen=True)
class TaskFile:
    """What the child reads."""

    task: OfflineTask
    limits: EngineLimits


@dataclass
class TaskResult:
    """What came of the work: rows in all, rows left out by reason, and what else the kind of work tells."""

    total_count: int = 0
    skipped_counts: dict[str, int] = field(default_factory=dict)
    present_counts: dict[str, int] = field(default_factory=dict)
    parities: list[dict[str, Any]] = field(default_factory=list)


_FILE: Final = TypeAdapter(TaskFile)
_RESULT: Final = TypeAdapter(TaskResult)


def write_task(folder: Path, task: OfflineTask, limits: EngineLimits) -> None:
    """Write what the child has to do."""
    (folder / TASK_FILE).write_bytes(_FILE.dump_json(TaskFile(task, limits)))


def read_task(folder: Path) -> TaskFile:
    """Return what has to be done."""
    return _FILE.validate_json((folder / TASK_FILE).read_bytes())


def write_progress(folder: Path, done: int, total: int) -> None:
    """Say how far the work has come; whoever reads sees the old state or the new one."""
    _replace(folder / PROGRESS_FILE, json.dumps([done, total]).encode())


def read_progress(folder: Path) -> tuple[int, int]:
    """Return rows done and rows in all, 0 while they are not known."""
    try:
        done, total = json.loads((folder / PROGRESS_FILE).read_bytes())
    except FileNotFoundError:
        return 0, 0
    return int(done), int(total)


def write_result(folder: Path, result: TaskResult) -> None:
    """Say that the work is done."""
    _replace(folder / RESULT_FILE, json.dumps(asdict(result)).encode())


def read_result(folder: Path) -> TaskResult | None:
    """Return what came of the work, None while it is not done."""
    try:
        return _RESULT.validate_json((folder / RESULT_FILE).read_bytes())
    except FileNotFoundError:
        return None


def write_error(folder: Path, status: Status) -> None:
    """Say why the work cannot be done."""
    _replace(folder / ERROR_FILE, status.SerializeToString())


def read_error(folder: Path) -> Status | None:
    """Return why the work cannot be done."""
    try:
        return Status.FromString((folder / ERROR_FILE).read_bytes())
    except FileNotFoundError:
        return None


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_suffix(".new")
    beside.write_bytes(content)
    beside.replace(path)
