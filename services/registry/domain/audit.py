"""The log of changes as a hash chain: an entry that is edited, lost or moved breaks it."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

FIRST_PREVIOUS_HASH: Final = "0" * 64
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Author:
    """Who makes a change, by which action, in which call."""

    principal: str
    action: str
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One change of one resource; digests are SHA-256 of the stored resource, empty where there is none."""

    sequence: int
    time: datetime
    author: Author
    resource: str
    before_digest: str
    after_digest: str
    previous_hash: str
    hash: str = ""


@dataclass(frozen=True, slots=True)
class ChainHead:
    """Where the log ends: sequence and hash of its last entry."""

    sequence: int = 0
    hash: str = FIRST_PREVIOUS_HASH


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check of the log found; `first_broken_sequence` is 0 when all is well."""

    first_broken_sequence: int
    entry_count: int
    head_hash: str


def seal(entry: AuditEntry) -> AuditEntry:
    """Return the entry with its hash."""
    return replace(entry, hash=entry_hash(entry))


def entry_hash(entry: AuditEntry) -> str:
    """Return SHA-256 over the previous hash and all other fields, each with its length before it.

    Lengths keep fields apart: no text can be moved from one field to the next without a trace. The time counts in
    microseconds since 1970.
    """
    fields = (
        entry.previous_hash,
        str(entry.sequence),
        str(microseconds(entry.time)),
        entry.author.principal,
        entry.author.action,
        entry.resource,
        entry.before_digest,
        entry.after_digest,
        entry.author.request_id,
    )
    digest = hashlib.sha256()
    for field in fields:
        data = field.encode()
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()


class ChainCheck:
    """Walks the log from its first entry on, in as many steps as the caller likes."""

    def __init__(self) -> None:
        self.head = ChainHead()
        self._count = 0
        self._first_broken = 0

    def add(self, entries: Iterable[AuditEntry]) -> None:
        """Check the next entries, in the order of their sequence."""
        for entry in entries:
            self._count += 1
            if not self._first_broken and not self._follows(entry):
                # After a lost entry the first one that is not what it was is the one that is not there.
                self._first_broken = min(entry.sequence, self.head.sequence + 1)
            self.head = ChainHead(entry.sequence, entry.hash)

    def verdict(self, recorded: ChainHead) -> Verdict:
        """Return what was found; `recorded` is the head that was written beside the log, which a cut tail betrays."""
        broken = self._first_broken
        if not broken and self.head != recorded:
            broken = min(self.head.sequence, recorded.sequence) + (self.head.sequence != recorded.sequence)
        return Verdict(broken, self._count, self.head.hash)

    def _follows(self, entry: AuditEntry) -> bool:
        expected = (self.head.sequence + 1, self.head.hash, entry_hash(entry))
        return (entry.sequence, entry.previous_hash, entry.hash) == expected


def microseconds(time: datetime) -> int:
    """Return whole microseconds since 1970, exactly."""
    elapsed = time - _EPOCH
    return (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds
