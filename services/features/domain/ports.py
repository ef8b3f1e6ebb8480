"""What the domain needs of the world, and what each kind of view offers to it.

Online values live on Redis. Every kind of view (plain, aggregate, on demand) has a `ViewReader` and, unless it is on
demand, a `ViewWriter`; the store sends what all readers of a call ask for in one pipelined round trip and gives every
reader its replies. Neither does I/O itself: they turn rows into commands and replies into values.

Times are microseconds since 1970-01-01 UTC. Values on the way to a caller are `wire` bytes (see `wire.py`): the store
keeps that form too, so a read copies bytes and decodes nothing.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol, TypeAlias

import pyarrow as pa

from services.features.domain.catalog import CompiledView
from services.features.domain.definitions import FeatureType, Value

Reply: TypeAlias = Any
"""What Redis said to one request: bytes, int, None or a list of them. An error is raised before anybody sees it."""


class Status(IntEnum):
    """How good a value is; the numbers are the contract's `ValueStatus`."""

    PRESENT = 1
    STALE = 2
    MISSING = 3


class Outcome(IntEnum):
    """What became of a row that was taken; the numbers are the contract's `PushOutcome`."""

    WRITTEN = 1
    OLDER = 2
    DUPLICATE = 3
    LATE = 4


@dataclass(frozen=True, slots=True)
class ValueType:
    """Which values are legal."""

    scalar: FeatureType
    is_list: bool = False
    nullable: bool = False


@dataclass(frozen=True, slots=True)
class ReadRow:
    """What one row is read for."""

    keys: Mapping[str, str]
    """Canonical keys by entity id."""
    request_values: Mapping[str, Value] = field(default_factory=dict)
    """What on-demand features are computed from, by name."""
    index: int = 0
    """Place of the row in the request, for messages."""


@dataclass(frozen=True, slots=True)
class Column:
    """Values of one feature, every list with one entry for each row in the order asked."""

    values: list[bytes]
    """Wire form; a missing value is the feature's default, or null."""
    statuses: list[int]
    """A `Status` each."""
    ages_ms: list[int]
    """As of the read's time, 0 or greater; -1 when missing."""
    event_times_us: list[int]
    """0 when missing."""
    known_ats_us: list[int]
    """0 when missing."""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script of Redis 6.2 that touches the keys of one call only."""

    text: str
    sha1: bytes

    @classmethod
    def of(cls, text: str) -> "Script":
        """Return the script with the digest that Redis knows it by."""
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest().encode())


@dataclass(frozen=True, slots=True)
class ScriptCall:
    """A call of a script; loading it is the store's business. All keys must lie in one cluster slot."""

    script: Script
    keys: tuple[bytes, ...]
    arguments: tuple[bytes, ...]


Command: TypeAlias = tuple[bytes, ...]
"""Name of a Redis 6.2 command, its one key, its other arguments: `(b"HMGET", key, b"mean_delay")`."""

Request: TypeAlias = Command | ScriptCall


class ViewReader(Protocol):
    """Reads some features of one view; made once for each set of features and used by many calls at a time."""

    @property
    def features(self) -> Sequence[str]:
        """The features that it reads, in the order of its columns."""

    @property
    def entities(self) -> Sequence[str]:
        """Entities whose keys every row must have; none when on demand."""

    def ask(self, rows: Sequence[ReadRow], as_of_us: int) -> Sequence[Request]:
        """Return what must be sent for the rows: any number of requests, none when on demand."""

    def answer(self, rows: Sequence[ReadRow], replies: Sequence[Reply], as_of_us: int) -> Sequence[Column]:
        """Return one column for each feature, from the replies to what `ask` returned, in that order.

        Raises InvalidArgument for request values that are missing or of the wrong type.
        """


@dataclass(frozen=True, slots=True)
class Row:
    """One checked row of a view: values of an entity at a time, or an event to aggregate."""

    keys: tuple[str, ...]
    """Canonical keys in the order of the view's entities."""
    values: Mapping[str, Value]
    """Of the legal types; a name that is left out was not carried."""
    event_time_us: int
    known_at_us: int
    event_id: str = ""


@dataclass(frozen=True, slots=True)
class InputColumn:
    """One value that rows of a view may carry: a feature, or a field of an event."""

    name: str
    type: ValueType
    required: bool = False


class ViewWriter(Protocol):
    """Writes rows of one view; made once for each view."""

    @property
    def view(self) -> CompiledView:
        """The view; the keys of a row are in the order of its entities."""

    @property
    def inputs(self) -> Sequence[InputColumn]:
        """What rows may carry: these are the columns of the history too."""

    @property
    def needs_event_id(self) -> bool:
        """Whether every row must carry an event id."""

    def write(self, row: Row, now_us: int) -> ScriptCall | Outcome:
        """Return the call that writes a row, or what became of it when the store need not be asked.

        Writing a row again, or rows in another order, must lead to the same state.
        """

    def outcome(self, reply: Reply) -> Outcome:
        """Return what became of a row, from the reply to its call."""


class OnlineStore(Protocol):
    """Redis, as the domain sees it. Raises OnlineStoreUnavailable, soon, when it is down or slow."""

    async def read(self, requests: Sequence[Request]) -> Sequence[Reply]:
        """Return the replies, in order; what is asked at the same moment by others shares the round trip."""

    async def write(self, requests: Sequence[Request]) -> Sequence[Reply]:
        """Send requests that change something, pipelined, and return the replies, in order."""

    async def delete_view(self, view: CompiledView) -> None:
        """Remove all online values of a view; those of a later view of the same id stay."""


class OnlineWriter(Protocol):
    """Writes rows to the online store and nowhere else; the history has them already."""

    def check(self) -> None:
        """Raise OnlineStoreUnavailable while it is known that a write would fail."""

    async def write(self, writer: ViewWriter, rows: Sequence[Row]) -> Sequence[Outcome]:
        """Write rows of any number; returns what became of each, in order. Raises OnlineStoreUnavailable."""


@dataclass(frozen=True, slots=True)
class HistoryScan:
    """The history of one view at one moment: every row in exactly one of the two."""

    parts: Sequence[str]
    """URIs of Parquet files, as DuckDB and fsspec read them; empty ones are left out."""
    tail: pa.Table | None
    """Rows that are in no file yet, with the same columns; None when there are none."""


class History(Protocol):
    """The append-only history of all rows that were taken, one Parquet dataset for each view.

    Columns: `entity__<id>` (string) for each entity; one for each input of the view (double, int64, string, bool or a
    list of it); `event_time` and `known_at` (timestamp[us, UTC]); `event_id` (string); `absent` (list of string: the
    inputs that the row did not carry, which are null in their columns). A part has the columns that the view had when
    the part was written: read with union by name.

    Rows that were pushed twice are there twice, with a later known-at the second time.
    """

    async def append(self, writer: ViewWriter, rows: Sequence[Row]) -> None:
        """Return once the rows are safe on disk. Raises HistoryUnavailable, or ResourceExhausted when too many wait."""

    async def scan(self, view: str) -> HistoryScan:
        """Return where the rows of a view are."""
