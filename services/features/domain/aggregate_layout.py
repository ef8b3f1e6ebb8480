"""How the events of an aggregate view are kept: one Redis hash for each entity.

The hash holds events as records of one size, joined in slots of time, so that a read gets few large values and decodes
them as arrays. Slots with many events have a tile too: count, sums, extremes and newest times of all of them, from
which a read takes what lies wholly within its windows. Sums in tiles are exact (see `aggregates.exact_parts`), and a
tile is only taken when all of its events were known by the read's time, so tiles never change an answer.

- `s<slot>`: records of the events with event time in the slot, in the order in which they were taken; `t<slot>`: their
  texts, one after the other; `p<slot>`: the tile.
- `i<byte>`: digests, less their first byte, of the ids of all events held: what makes an event count once.
- `d`: numbers of the slots held, 4 bytes each; `n`: the newest time seen.

Events older than the longest window and the allowed lateness together are dropped, a slot at a time, and not taken
any more. So the answer for any time not further back than the allowed lateness from the newest event is exact.
"""

import hashlib
import json
import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from services.features.domain.aggregates import ID_BYTES, window_us
from services.features.domain.catalog import CompiledView
from services.features.domain.definitions import AggregateSource, FeatureType
from services.features.domain.online_key import KeySpace
from services.features.domain.ports import Row

_SECOND_US: Final = 1_000_000
_CLOCK_SLACK_US: Final = 60 * _SECOND_US
# Few enough for one HMGET, many enough that a slot more or less does not matter.
_MOST_SLOTS: Final = 128
_SLOT_WIDTHS_S: Final = (1, 5, 15, 60, 300, 900, 3_600, 4 * 3_600, 43_200, 86_400, 4 * 86_400)

# A tile of a usual event, with two or three fields, takes less room than this many of them.
LEAST_EVENTS_OF_A_TILE: Final = 16


class AggregateLayout:
    """How the events of a view are kept; all of its fields are, so an aggregate more needs no other layout.

    Two layouts never share a hash: when the fields, or the time for which events are held, change so much that the
    width of a slot does, the view starts with no events.
    """

    def __init__(self, view: CompiledView) -> None:
        source = view.definition.source
        assert isinstance(source, AggregateSource), "only aggregate views come here"
        self.fields: dict[str, FeatureType] = {
            field.name: field.type for field in sorted(source.fields, key=lambda each: each.name) if field.type
        }
        self.aggregates = {aggregate.feature: aggregate for aggregate in source.aggregates}
        longest_us = max(map(window_us, source.aggregates))
        self.keep_us = longest_us + view.allowed_lateness_us + _CLOCK_SLACK_US
        self.width_us = _slot_width_us(self.keep_us)
        self.dtype = np.dtype(
            [
                ("id", "V16"),
                ("event_time", "<i8"),
                ("known_at", "<i8"),
                *((f"null:{name}", "?") for name in self.fields),
                *((f"value:{name}", _NUMPY[kind]) for name, kind in self.fields.items()),
            ]
        )
        codes = "".join(_STRUCT[kind] for kind in self.fields.values())
        self._record = struct.Struct(f"<{ID_BYTES}sqq{'?' * len(codes)}{codes}")
        shape = json.dumps([[name, kind.value] for name, kind in self.fields.items()] + [self.width_us])
        used = {each.field for each in source.aggregates if each.field}
        self.tile_fields = [name for name in self.fields if name in used]
        self.tile_dtype = np.dtype(_TILE_HEAD + [part for name in self.tile_fields for part in _tile_parts(name)])
        self._suffix = b"~" + hashlib.sha256(shape.encode()).hexdigest()[:8].encode()
        self.tile_digest = hashlib.sha256(f"{shape} {self.tile_fields}".encode()).hexdigest()[:8].encode()
        self._keys = KeySpace(view)

    @property
    def tile_arguments(self) -> tuple[bytes, ...]:
        """What the script that writes must know of tiles."""
        form = b"<I4i8i8i8B" + b"I4i8i8dddddd" * len(self.tile_fields)
        fields: list[bytes] = []
        for name in self.tile_fields:
            kind, places = _STRUCT[self.fields[name]], self.dtype.fields
            assert places is not None
            null_at, value_at = places[f"null:{name}"][1], places[f"value:{name}"][1]
            fields += (kind.encode(), b"%d" % (null_at + 1), b"%d" % (value_at + 1))
        return (self.tile_digest, form, b"%d" % LEAST_EVENTS_OF_A_TILE, *fields)

    def count_place(self, field: str) -> int:
        """Return where a kept tile has the number of values of a field, counted from 1."""
        places = self.tile_dtype.fields
        assert places is not None
        return len(self.tile_digest) + int(places[f"count:{field}"][1]) + 1

    def key(self, keys: Sequence[str]) -> bytes:
        """Return the Redis key of an entity: of fixed length at its end, so no two entities share one."""
        return self._keys.of(keys) + self._suffix

    def record(self, row: Row, digest: bytes) -> tuple[bytes, bytes]:
        """Return an event as it is kept: the record, and its texts."""
        values = [row.values.get(name) for name in self.fields]
        texts: list[bytes] = []
        stored: list[Any] = []
        for value, kind in zip(values, self.fields.values(), strict=True):
            if kind is FeatureType.STRING:
                text = str(value).encode() if value is not None else b""
                texts.append(text)
                stored.append(len(text))
            else:
                stored.append(0 if value is None else value)
        nulls = [value is None for value in values]
        return self._record.pack(digest, row.event_time_us, row.known_at_us, *nulls, *stored), b"".join(texts)


_NUMPY: Final = {FeatureType.DOUBLE: "<f8", FeatureType.INT64: "<i8", FeatureType.BOOL: "?", FeatureType.STRING: "<u4"}
_STRUCT: Final = {FeatureType.DOUBLE: "d", FeatureType.INT64: "q", FeatureType.BOOL: "?", FeatureType.STRING: "I"}

_TILE_HEAD: Final[list[Any]] = [
    ("count", "<u4"),
    ("event_time", "<i8"),
    ("known_at", "<i8"),
    ("latest_known_at", "<i8"),
    ("good", "u1"),
]


def _tile_parts(field: str) -> list[Any]:
    """Six numbers: least, greatest and four that add up; each is two, upper and lower 32 bits, for whole numbers."""
    return [
        (f"count:{field}", "<u4"),
        (f"event_time:{field}", "<i8"),
        (f"known_at:{field}", "<i8"),
        (f"numbers:{field}", "<f8", (6,)),
    ]


def _slot_width_us(keep_us: int) -> int:
    for width_s in _SLOT_WIDTHS_S:
        if keep_us <= width_s * _SECOND_US * _MOST_SLOTS:
            return width_s * _SECOND_US
    return _SLOT_WIDTHS_S[-1] * _SECOND_US
