"""Regions of system shared memory: parts of POSIX shared memory objects that clients on this host have registered.

A region is read and written through its descriptor and never mapped. Its client may cut the object at any time: a process
that has it mapped ends by SIGBUS, a read gives fewer bytes.
"""

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.common.chain import ByteBudget
from services.common.errors import (
    INVALID_FIELD,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unimplemented,
    Violation,
    echo,
)

REGIONS_LIMIT: Final = 256
"""Regions that a process holds; each keeps a descriptor open."""
_FOLDER: Final = "/dev/shm"  # noqa: S108 - where Linux keeps POSIX shared memory objects; only what clients named is opened
_NAME_LIMIT_CHARS: Final = 128
# What shm_open takes: one name, without a way to another folder.
_KEY: Final = re.compile(r"/?(?!\.{1,2}\Z)[!-.0-~]{1,255}", re.ASCII)
# No link and no pipe of somebody else's may stand in for the object, not even to make us wait.
_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class SharedMemoryOff(Unimplemented):
    """System shared memory is not switched on in this process."""

    def __init__(self) -> None:
        super().__init__(
            "system shared memory is off here: the setting INTERLOCK_SYSTEM_SHARED_MEMORY_BYTES turns it on; "
            "or send the values in the message",
            reason="NOT_IMPLEMENTED",
        )


class RegionNotFound(NotFound):
    """No region has the name."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"no shared memory region is registered as {echo(name)}; regions live in the process that registered them, "
            "so register it again if the server was restarted",
            reason="SHARED_MEMORY_REGION_NOT_FOUND",
            metadata={"region": name},
        )


class UnusableRegion(FailedPrecondition):
    """The object behind a region is not what it should be."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(
            f"shared memory object {echo(key)}: {problem}", reason="SHARED_MEMORY_UNUSABLE", metadata={"key": key}
        )


@dataclass(slots=True)
class Region:
    """A part of a shared memory object, open until it is let go."""

    name: str
    key: str
    offset: int
    """Where it starts in the object. Bytes."""
    size_bytes: int
    descriptor: int
    """-1 once the region was let go: its number may be another file's by then."""

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return a copy of a part; raises `RegionNotFound` when it was let go and `UnusableRegion`."""
        try:
            data = os.pread(self._open_descriptor(), size_bytes, self.offset + offset)
        except OSError as error:
            raise UnusableRegion(self.key, f"cannot be read: {error.strerror}") from None
        if len(data) != size_bytes:
            raise self._short(offset + len(data), offset + size_bytes)
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Fill a part; raises `RegionNotFound` when it was let go and `UnusableRegion`."""
        self.check(offset, len(data))
        left, position = memoryview(data), self.offset + offset
        try:
            while left:
                written = os.pwrite(self.descriptor, left, position)
                left, position = left[written:], position + written
        except OSError as error:
            raise UnusableRegion(self.key, f"cannot be written: {error.strerror}") from None

    def check(self, offset: int, size_bytes: int) -> None:
        """Raise `UnusableRegion` when the object ends before the part does."""
        end = os.fstat(self._open_descriptor()).st_size - self.offset
        if end < offset + size_bytes:
            raise self._short(max(end, 0), offset + size_bytes)

    def is_same(self, other: "Region") -> bool:
        """Whether both are the same part of the same object."""
        same_part = (self.offset, self.size_bytes) == (other.offset, other.size_bytes)
        return same_part and os.path.samestat(os.fstat(self.descriptor), os.fstat(other.descriptor))

    def close(self) -> None:
        """Let go of the object."""
        os.close(self.descriptor)
        self.descriptor = -1

    def _open_descriptor(self) -> int:
        if self.descriptor < 0:
            raise RegionNotFound(self.name)
        return self.descriptor

    def _short(self, got: int, want: int) -> UnusableRegion:
        return UnusableRegion(self.key, f"want {want} bytes from its byte {self.offset} on, got {got}")


class SharedRegions:
    """The regions of one process: registered through either door, used through either door.

    `limit_bytes`: how large all of them together may be; 0 switches them off. One request may read `message_limit_bytes`
    of them, and what is read counts in `budget` like what comes in messages.
    """

    def __init__(self, limit_bytes: int, message_limit_bytes: int, budget: ByteBudget) -> None:
        self.on = limit_bytes > 0
        self.message_limit_bytes = message_limit_bytes
        self.budget = budget
        self._limit_bytes = limit_bytes
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, size_bytes: int) -> None:
        """Open a region; the same one again changes nothing.

        Raises InvalidArgument for what can be no region, `UnusableRegion` for an object that is not there or too short,
        AlreadyExists for a name that another region has, and ResourceExhausted.
        """
        self._check_on()
        _check_words(name, key, offset, size_bytes)
        region = Region(name, key, offset, size_bytes, _open(key))
        try:
            region.check(0, size_bytes)
            if not self._is_known(region):
                self._check_room(size_bytes)
                self._regions[name] = region
        finally:
            if self._regions.get(name) is not region:
                region.close()

    def unregister(self, name: str) -> None:
        """Let go of a region, or of all when the name is empty; an unknown name is no error."""
        self._check_on()
        for found in list(self._regions) if not name else [name]:
            region = self._regions.pop(found, None)
            if region is not None:
                region.close()

    def listed(self, name: str) -> Sequence[Region]:
        """Return one region, or all when the name is empty; raises `RegionNotFound`."""
        return [self.find(name)] if name else self._listed_all()

    def find(self, name: str) -> Region:
        """Return a region; raises `RegionNotFound`, or `SharedMemoryOff`."""
        self._check_on()
        region = self._regions.get(name)
        if region is None:
            raise RegionNotFound(name)
        return region

    def close(self) -> None:
        """Let go of all."""
        while self._regions:
            self._regions.popitem()[1].close()

    def _listed_all(self) -> Sequence[Region]:
        self._check_on()
        return list(self._regions.values())

    def _check_on(self) -> None:
        if not self.on:
            raise SharedMemoryOff

    def _is_known(self, region: Region) -> bool:
        known = self._regions.get(region.name)
        if known is not None and not known.is_same(region):
            raise AlreadyExists(
                f"another shared memory region is registered as {echo(region.name)}: unregister it first",
                reason="SHARED_MEMORY_REGION_EXISTS",
                metadata={"region": region.name},
            )
        return known is not None

    def _check_room(self, size_bytes: int) -> None:
        used_bytes = sum(region.size_bytes for region in self._regions.values())
        if len(self._regions) >= REGIONS_LIMIT or used_bytes + size_bytes > self._limit_bytes:
            raise ResourceExhausted(
                f"want at most {REGIONS_LIMIT} shared memory regions of {self._limit_bytes} bytes in all, got one of "
                f"{size_bytes} bytes beside {len(self._regions)} of {used_bytes}: unregister what is not used",
                reason="SHARED_MEMORY_LIMIT_EXCEEDED",
                metadata={"limit_bytes": str(self._limit_bytes), "used_bytes": str(used_bytes)},
            )


def _check_words(name: str, key: str, offset: int, size_bytes: int) -> None:
    wrong = []
    if not 1 <= len(name) <= _NAME_LIMIT_CHARS:
        wrong.append(Violation("name", f"want 1 to {_NAME_LIMIT_CHARS} characters, got {len(name)}"))
    if not _KEY.fullmatch(key):
        want = "want the name of a POSIX shared memory object, such as /tensors: ASCII, no slash but the first"
        wrong.append(Violation("key", f"{want}, got {echo(key)}"))
    if offset < 0:
        wrong.append(Violation("offset", f"want 0 or more, got {offset}"))
    if size_bytes < 1:
        wrong.append(Violation("byte_size", f"want 1 or more, got {size_bytes}"))
    if wrong:
        said = "; ".join(f"{violation.field}: {violation.description}" for violation in wrong)
        raise InvalidArgument(said, reason=INVALID_FIELD, violations=wrong)


def _open(key: str) -> int:
    try:
        descriptor = os.open(f"{_FOLDER}/{key.removeprefix('/')}", _FLAGS)
    except OSError as error:
        raise UnusableRegion(key, f"cannot be opened for reading and writing: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnusableRegion(key, "is no shared memory object")
    return descriptor
