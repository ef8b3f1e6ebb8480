"""What the predictions of one window looked like: counts and sketches, mergeable, in fixed memory."""

import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np

from services.monitor.domain.category_sketch import CategorySketch
from services.monitor.domain.fairness import GroupCounts
from services.monitor.domain.label_free import ScoreSketch
from services.monitor.domain.numeric_sketch import NumericSketch, SketchUnreadable

Sketch = NumericSketch | CategorySketch
GROUP_VALUE_LIMIT: Final = 50
"""Values of a feature that are told apart for fairness; further ones share `_other`."""
OTHER_GROUP: Final = "_other"
_MAGIC: Final = b"ILW1"
_SIZE: Final = struct.Struct("<I")
_KINDS: Final[Mapping[str, type[NumericSketch] | type[CategorySketch]]] = {"n": NumericSketch, "c": CategorySketch}
Groups = dict[str, dict[str, GroupCounts]]


@dataclass(frozen=True, slots=True, order=True)
class WindowKey:
    """Which predictions: of one version, environment, slice and variant, from start_us up to end_us."""

    model: str
    version: str
    environment: str
    slice_name: str
    """Empty: everything."""
    variant: str
    """Empty: pinned."""
    start_us: int
    end_us: int


class WindowSketch:
    """Counts and sketches of the predictions of one window. Weights say how many predictions each one stands for."""

    __slots__ = (
        "cached",
        "degraded",
        "features",
        "groups",
        "illegal",
        "latency_ms",
        "outputs",
        "scores",
        "stale",
        "statuses",
    )

    def __init__(self) -> None:
        self.statuses: dict[int, float] = {}
        """Predictions by gRPC status code."""
        self.degraded = 0.0
        self.cached = 0.0
        self.latency_ms = NumericSketch()
        self.features: dict[str, Sketch] = {}
        self.outputs: dict[str, Sketch] = {}
        """By "prediction" and "probability/<label>"."""
        self.illegal: dict[str, float] = {}
        """Values outside of the signature's limits, by feature."""
        self.stale: dict[str, float] = {}
        """Fetched values older than allowed, by feature."""
        self.groups: Groups = {}
        """By feature and value."""
        self.scores: ScoreSketch | None = None
        """Probabilities of the positive class; None until there is one."""

    @property
    def prediction_count(self) -> float:
        """Predictions, failed ones included."""
        return sum(self.statuses.values())

    @property
    def ok_count(self) -> float:
        """Predictions that were answered."""
        return self.statuses.get(0, 0.0)

    def merge(self, other: "WindowSketch") -> None:
        """Add what another window has seen. A sketch that cannot be added, of other bins, is left out."""
        add_counts(self.statuses, other.statuses)
        add_counts(self.illegal, other.illegal)
        add_counts(self.stale, other.stale)
        self.degraded += other.degraded
        self.cached += other.cached
        self.latency_ms.merge(other.latency_ms)
        _merge_sketches(self.features, other.features)
        _merge_sketches(self.outputs, other.outputs)
        merge_groups(self.groups, other.groups)
        if other.scores is not None:
            self.scores = self.scores or ScoreSketch()
            self.scores.merge(other.scores)

    def to_bytes(self) -> bytes:
        """Return an encoding that carries its version."""
        sketches = [*_entries("f", self.features), *_entries("o", self.outputs), ("l", "", "n", self.latency_ms)]
        blobs = [sketch.to_bytes() for _, _, _, sketch in sketches]
        scores = b"" if self.scores is None else self.scores.to_bytes()
        head = {
            "statuses": list(self.statuses.items()),
            "degraded": self.degraded,
            "cached": self.cached,
            "illegal": self.illegal,
            "stale": self.stale,
            "groups": groups_to_json(self.groups),
            "sketches": [
                [place, name, kind, len(blob)] for (place, name, kind, _), blob in zip(sketches, blobs, strict=True)
            ],
            "scores": len(scores),
        }
        return pack(_MAGIC, head, [*blobs, scores])

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return the window; raises SketchUnreadable."""
        head, rest = unpack(_MAGIC, data)
        window = cls()
        try:
            window.statuses = {int(status): float(weight) for status, weight in head["statuses"]}
            window.degraded, window.cached = head["degraded"], head["cached"]
            window.illegal, window.stale = head["illegal"], head["stale"]
            window.groups = groups_from_json(head["groups"])
            for place, name, kind, size in head["sketches"]:
                window._put(place, name, _KINDS[kind].from_bytes(bytes(rest[:size])))
                rest = rest[size:]
            if head["scores"]:
                window.scores = ScoreSketch.from_bytes(bytes(rest[: head["scores"]]))
        except (KeyError, TypeError, ValueError) as error:
            raise SketchUnreadable(f"want a window, got {len(data)} bytes that are none: {error}") from error
        return window

    def _put(self, place: str, name: str, sketch: Sketch) -> None:
        if place == "l" and isinstance(sketch, NumericSketch):
            self.latency_ms = sketch
        else:
            (self.features if place == "f" else self.outputs)[name] = sketch


def scores_from_bytes(data: bytes) -> ScoreSketch:
    """Return the probabilities of an encoded window alone, an empty sketch for none; raises SketchUnreadable."""
    head, rest = unpack(_MAGIC, data)
    size = head["scores"]
    return ScoreSketch.from_bytes(bytes(rest[len(rest) - size :])) if size else ScoreSketch()


def add_counts(mine: "dict[Any, float]", other: "Mapping[Any, float]") -> None:
    """Add counts by key."""
    for key, weight in other.items():
        mine[key] = mine.get(key, 0.0) + weight


def merge_groups(mine: Groups, other: Mapping[str, Mapping[str, GroupCounts]]) -> None:
    """Add counts of groups; values beyond the limit share `_other`."""
    for feature, values in other.items():
        found = mine.setdefault(feature, {})
        for value, counts in values.items():
            known = value if value in found or len(found) < GROUP_VALUE_LIMIT else OTHER_GROUP
            found[known] = found.get(known, GroupCounts()) + counts


def groups_to_json(groups: Mapping[str, Mapping[str, GroupCounts]]) -> dict[str, dict[str, list[float]]]:
    """Return groups as JSON has them."""
    return {
        feature: {value: [getattr(counts, name) for name in GroupCounts.__slots__] for value, counts in values.items()}
        for feature, values in groups.items()
    }


def groups_from_json(groups: Mapping[str, Mapping[str, Iterable[float]]]) -> Groups:
    """Return groups from JSON."""
    return {
        feature: {value: GroupCounts(*cells) for value, cells in values.items()} for feature, values in groups.items()
    }


def pack(magic: bytes, head: Mapping[str, Any], blobs: Iterable[bytes]) -> bytes:
    """Return what a window is kept as: a mark, then JSON and blobs, compressed."""
    text = json.dumps(head, separators=(",", ":")).encode()
    return magic + zlib.compress(_SIZE.pack(len(text)) + text + b"".join(blobs), 1)


def unpack(magic: bytes, data: bytes) -> tuple[dict[str, Any], memoryview]:
    """Return JSON and the blobs behind it; raises SketchUnreadable."""
    if data[: len(magic)] != magic:
        raise SketchUnreadable(f"want a window that begins with {magic!r}, got {data[: len(magic)]!r}")
    try:
        plain = zlib.decompress(data[len(magic) :])
        (size,) = _SIZE.unpack_from(plain)
        end = _SIZE.size + size
        return json.loads(plain[_SIZE.size : end]), memoryview(plain)[end:]
    except (zlib.error, struct.error, ValueError) as error:
        raise SketchUnreadable(f"want a window, got {len(data)} bytes that are none: {error}") from error


def _entries(place: str, sketches: Mapping[str, Sketch]) -> Iterable[tuple[str, str, str, Sketch]]:
    for name, sketch in sketches.items():
        yield place, name, "n" if isinstance(sketch, NumericSketch) else "c", sketch


def _merge_sketches(mine: dict[str, Sketch], other: Mapping[str, Sketch]) -> None:
    for name, sketch in other.items():
        match mine.get(name), sketch:
            case None, _:
                # A copy: what was merged from may go on growing.
                mine[name] = type(sketch).from_bytes(sketch.to_bytes())
            case NumericSketch() as found, NumericSketch() if np.array_equal(found.edges, sketch.edges):
                found.merge(sketch)
            case CategorySketch() as found, CategorySketch() if found.categories == sketch.categories:
                found.merge(sketch)
