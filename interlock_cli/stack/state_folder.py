"""The folder of everything that one stack keeps, and the lock that makes it one stack's."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from interlock_cli.errors import CommandFailed

# The kernel's limit for a Unix socket's path, and what the longest name below the folder needs of it.
SOCKET_PATH_LIMIT_BYTES: Final = 107
LONGEST_SOCKET_BYTES: Final = len("/run/inference-1234567/admin.sock")


@dataclass(frozen=True)
class StateFolder:
    """Paths below the state folder; absolute, so that a child may change its working directory."""

    path: Path

    @classmethod
    def at(cls, path: Path) -> "StateFolder":
        """Return the folder at `path`, made absolute; nothing is created."""
        return cls(path.expanduser().absolute())

    @property
    def run(self) -> Path:
        """Sockets of running processes."""
        return self.path / "run"

    @property
    def logs(self) -> Path:
        """One log file per service."""
        return self.path / "logs"

    @property
    def redis(self) -> Path:
        """What Redis keeps."""
        return self.path / "redis"

    @property
    def control_socket(self) -> Path:
        """Where the supervisor listens for other commands."""
        return self.run / "control.sock"

    @property
    def redis_socket(self) -> Path:
        """Where Redis listens."""
        return self.run / "redis.sock"

    @property
    def lock(self) -> Path:
        """Held by the supervisor for as long as it lives."""
        return self.path / "stack.lock"

    def log_of(self, service: str) -> Path:
        """Return the log file of a service."""
        return self.logs / f"{service}.log"

    def too_long_by_bytes(self) -> int:
        """Return by how much the path is too long for the sockets below it; 0 or less when it fits."""
        return len(os.fsencode(self.path)) + LONGEST_SOCKET_BYTES - SOCKET_PATH_LIMIT_BYTES

    def prepare(self) -> None:
        """Create the folders, readable by this user only; raises CommandFailed when that cannot be."""
        excess = self.too_long_by_bytes()
        if excess > 0:
            raise CommandFailed(
                f"the path of the state folder is {excess} bytes too long for Unix sockets: {self.path}",
                ["set INTERLOCK_STATE_DIR to a shorter path, for example /tmp/interlock"],
            )
        try:
            for folder in (self.path, self.run, self.logs, self.redis):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise CommandFailed(
                f"the state folder {self.path} cannot be used: {error.strerror}",
                ["set INTERLOCK_STATE_DIR to a folder that you may write to"],
            ) from None


@contextmanager
def stack_lock(folder: StateFolder, port_offset: int) -> Iterator[None]:
    """Hold the folder while the block runs; raises CommandFailed that tells who has it.

    The kernel releases it with the process, however that ends, so a stale lock cannot be.
    """
    with folder.lock.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CommandFailed(
                f"a stack already runs on {folder.path}{_who(file)}",
                [
                    "`interlock status` shows it, `interlock down` stops it",
                    "for a second stack set INTERLOCK_STATE_DIR to another folder and INTERLOCK_PORT_OFFSET to move its ports",
                ],
            ) from None
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "port_offset": port_offset}))
        file.flush()
        yield


def lock_holder(folder: StateFolder) -> int | None:
    """Return the process id of the stack that holds the folder, None when no stack does."""
    try:
        with folder.lock.open("r", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return _pid(file.read())
    except FileNotFoundError:
        return None
    return None


def _who(file: TextIO) -> str:
    file.seek(0)
    pid = _pid(file.read())
    return f" (pid {pid})" if pid else ""


def _pid(text: str) -> int:
    try:
        return int(json.loads(text)["pid"])
    except (ValueError, KeyError, TypeError):
        return 0
