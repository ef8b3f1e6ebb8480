"""What is kept of a stream of texts: fixed memory, mergeable, whatever the traffic."""

import json
import struct
from collections.abc import Sequence
from typing import Final, Self

import datasketches
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from services.monitor.domain.numeric_sketch import SketchUnreadable
from services.monitor.domain.profile import FloatArray, Histogram

FREQUENT_LG_SIZE: Final = 8
"""New categories: 192 are counted exactly; beyond that counts are off by at most 1.4 % of all new values."""
DISTINCT_LG_SIZE: Final = 12
"""HyperLogLog of 2 KB; one standard error is 1.6 %."""
CATEGORY_LIMIT_CHARS: Final = 256
"""Longer texts are cut: memory stays fixed."""
_MAGIC: Final = b"ILC1"
_HEAD: Final = struct.Struct("<4sIII4d")


class CategorySketch:
    """Exact counts of a baseline's categories, the most frequent new ones, and how many there are in all.

    None is missing. A weight says how many predictions a value stands for (sampling); None: each stands for itself.
    """

    __slots__ = (
        "_index",
        "categories",
        "category_weights",
        "count",
        "frequent",
        "hll",
        "missing_weight",
        "other_weight",
        "squared_weight",
    )

    def __init__(self, categories: Sequence[str] = ()) -> None:
        self.categories = tuple(categories)
        self._index = {category: index for index, category in enumerate(self.categories)}
        self.category_weights: FloatArray = np.zeros(len(self.categories))
        self.count = 0
        """Values seen, missing ones too, unweighted."""
        self.missing_weight = 0.0
        self.other_weight = 0.0
        """Values that are none of the baseline's categories."""
        self.squared_weight = 0.0
        self.frequent = datasketches.frequent_strings_sketch(FREQUENT_LG_SIZE)
        self.hll = datasketches.hll_sketch(DISTINCT_LG_SIZE, datasketches.tgt_hll_type.HLL_4)

    @property
    def value_weight(self) -> float:
        """Predictions that have a value, weighted."""
        return float(self.category_weights.sum()) + self.other_weight

    @property
    def total_weight(self) -> float:
        """Predictions, those without a value too, weighted."""
        return self.value_weight + self.missing_weight

    @property
    def distinct_count(self) -> float:
        """Different values, an estimate: within 3.2 % in 95 % of sketches."""
        return float(self.hll.get_estimate())

    def update(self, values: pa.Array | Sequence[str | None], weights: npt.ArrayLike | None = None) -> None:
        """Take texts [n], an Arrow column or a sequence, with weights [n] above 0."""
        column = values if isinstance(values, pa.Array) else pa.array(values, pa.string())
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        codes = np.asarray(column.indices.fill_null(len(column.dictionary)))
        weighted = None if weights is None else np.asarray(weights, dtype=np.float64).ravel()
        sums = np.bincount(codes, weighted, len(column.dictionary) + 1).astype(np.float64)
        self.count += len(column)
        self.missing_weight += float(sums[-1])
        present = codes < len(column.dictionary)
        self.squared_weight += float(np.count_nonzero(present) if weighted is None else np.sum(weighted[present] ** 2))
        self._take(column.dictionary.to_pylist(), sums[:-1])

    def merge(self, other: "CategorySketch") -> None:
        """Add what another sketch of the same categories has seen; raises ValueError when the categories differ."""
        if self.categories != other.categories:
            raise ValueError("sketches of different categories cannot be merged")
        self.category_weights = self.category_weights + other.category_weights
        self.count += other.count
        self.missing_weight += other.missing_weight
        self.other_weight += other.other_weight
        self.squared_weight += other.squared_weight
        self.frequent.merge(other.frequent)
        union = datasketches.hll_union(DISTINCT_LG_SIZE)
        union.update(self.hll)
        union.update(other.hll)
        self.hll = union.get_result(datasketches.tgt_hll_type.HLL_4)

    def new_categories(self, limit: int = 20) -> list[tuple[str, float]]:
        """Return the most frequent values that the baseline does not have with their counts, most frequent first."""
        found = self.frequent.get_frequent_items(datasketches.frequent_items_error_type.NO_FALSE_NEGATIVES)
        ranked = sorted(((str(item[0]), float(item[1])) for item in found), key=lambda pair: (-pair[1], pair[0]))
        return ranked[:limit]

    def histogram(self) -> Histogram:
        """Return the exact counts of the baseline's categories, those of all others together last."""
        counts = np.append(self.category_weights, self.other_weight)
        total = float(counts.sum())
        return Histogram(counts, total * total / self.squared_weight if self.squared_weight else 0.0)

    def to_bytes(self) -> bytes:
        """Return the sketch in an encoding that carries its version."""
        names = json.dumps(self.categories).encode()
        frequent, hll = bytes(self.frequent.serialize()), bytes(self.hll.serialize_compact())
        figures = (self.count, self.missing_weight, self.other_weight, self.squared_weight)
        head = _HEAD.pack(_MAGIC, len(self.categories), len(names), len(frequent), *figures)
        return head + names + self.category_weights.astype("<f8").tobytes() + frequent + hll

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return the sketch; raises SketchUnreadable."""
        try:
            magic, count, name_size, frequent_size, *figures = _HEAD.unpack_from(data)
            if magic != _MAGIC:
                raise SketchUnreadable(f"want a sketch that begins with {_MAGIC!r}, got {magic!r}")
            at = _HEAD.size + name_size
            sketch = cls(json.loads(data[_HEAD.size : at]))
            sketch.category_weights = np.frombuffer(data, "<f8", count, at).copy()
            at += 8 * count
            sketch.frequent = datasketches.frequent_strings_sketch.deserialize(data[at : at + frequent_size])
            sketch.hll = datasketches.hll_sketch.deserialize(data[at + frequent_size :])
        except (struct.error, ValueError, RuntimeError) as error:
            raise SketchUnreadable(f"want a category sketch, got {len(data)} bytes that are none: {error}") from error
        sketch.count = int(figures[0])
        sketch.missing_weight, sketch.other_weight, sketch.squared_weight = figures[1:]
        return sketch

    def _take(self, values: list[str | None], weights: FloatArray) -> None:
        for value, weight in zip(values, weights.tolist(), strict=True):
            if weight <= 0:
                # A dictionary may hold values that no row has.
                continue
            if value is None:
                # A dictionary may have an entry for null beside the rows that are null.
                self.missing_weight += weight
                continue
            self.hll.update(value)
            index = self._index.get(value)
            if index is not None:
                self.category_weights[index] += weight
                continue
            self.other_weight += weight
            self.frequent.update(value[:CATEGORY_LIMIT_CHARS], max(1, round(weight)))
