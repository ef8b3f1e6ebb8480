"""A child process of the event loop, started without fork.

asyncio's own way forks under uvloop, and gRPC's fork handlers then run in the child beside threads that are not there: it
dies now and then before it has begun. `subprocess` uses vfork, which runs no handlers; it is called on the loop's own
thread, because PDEATHSIG is sent when the *thread* ends that started a child. The end is seen through a pidfd.
"""

import asyncio
import contextlib
import os
import subprocess
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_LINES_KEPT: Final = 50
_LINE_LIMIT_CHARS: Final = 500


class ChildProcess:
    """A running child: its number, its last lines on standard error, its end."""

    def __init__(self, command: Sequence[str], folder: Path, pass_descriptors: Sequence[int]) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=tuple(pass_descriptors),
            cwd=folder,
        )
        self.lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self.ended: asyncio.Future[int] = self._loop.create_future()
        """The exit code, or the negative number of a signal."""
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._on_exit)
        self._stderr = _fileno(self._process.stderr)
        self._rest = b""
        os.set_blocking(self._stderr, False)
        os.set_blocking(_fileno(self._process.stdin), False)
        self._loop.add_reader(self._stderr, self._on_stderr)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def write(self, line: bytes) -> None:
        """Write a line to its standard input; dropped when nobody reads there any more."""
        stdin = self._process.stdin
        if stdin is not None and not stdin.closed:
            with contextlib.suppress(OSError):
                os.write(stdin.fileno(), line)

    def close_input(self) -> None:
        """End its standard input."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def kill(self) -> None:
        """End it now."""
        self._process.kill()

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._on_stderr()
        self._loop.remove_reader(self._stderr)
        code = self._process.wait()
        for stream in (self._process.stdin, self._process.stderr):
            if stream is not None:
                stream.close()
        self.ended.set_result(code)

    def _on_stderr(self) -> None:
        """Keep the last lines: they are the cause that nobody else knows."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._stderr, 65_536):
                *whole, self._rest = (self._rest + chunk).split(b"\n")
                self.lines.extend(line.decode("utf-8", "replace")[:_LINE_LIMIT_CHARS] for line in whole)
            self._loop.remove_reader(self._stderr)


def _fileno(stream: object) -> int:
    number: int = stream.fileno()  # type: ignore[attr-defined]
    return number
