"""A small file that survives crashes and bad disks: written atomically, with a digest, keeping the one before.

Layout: 32 bytes SHA-256 of the payload, then the payload.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import structlog

_T = TypeVar("_T")
_LOG: Final = structlog.get_logger(part="snapshot")
_DIGEST_BYTES: Final = 32


class SnapshotFile:
    """The newest payload at `path`, and the one before beside it as `<name>.previous`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.previous = path.with_name(f"{path.name}.previous")

    def save(self, payload: bytes) -> None:
        """Replace the payload; after a crash at any point the old or the new one is there, whole. Blocks for fsync."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=f".{self.path.name}-", delete=False) as file:
            try:
                file.write(hashlib.sha256(payload).digest() + payload)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                Path(file.name).unlink()
                raise
        self._keep_previous()
        Path(file.name).replace(self.path)
        _sync_folder(self.path.parent)

    def load(self, read: Callable[[bytes], _T]) -> tuple[_T, float] | None:
        """Return what `read` makes of the newest good payload and when it was written (seconds since the epoch).

        A payload is bad when its digest is wrong or `read` raises ValueError; then the one before is taken. None when
        there is none.
        """
        for path in (self.path, self.previous):
            try:
                return read(_payload(path)), path.stat().st_mtime
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                _LOG.error("snapshot_refused", file=path.name, error=str(error))
        return None

    def _keep_previous(self) -> None:
        try:
            _payload(self.path)
        except FileNotFoundError:
            return
        except (OSError, ValueError):
            # A bad file must not push out the good one before it.
            return
        # Another process of the service may have moved it since; both write the same.
        with suppress(FileNotFoundError):
            self.path.replace(self.previous)


def _payload(path: Path) -> bytes:
    content = path.read_bytes()
    digest, payload = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        raise ValueError("the digest does not match the content")
    return payload


def _sync_folder(folder: Path) -> None:
    # The rename itself is only durable once the folder is.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
