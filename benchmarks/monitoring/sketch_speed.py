"""What sketches cost and how exact they are: the libraries' against each other, and ours at work."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasketches
import numpy as np
import pyarrow as pa

from services.monitor.domain.category_sketch import CategorySketch
from services.monitor.domain.numeric_sketch import NumericSketch

VALUES, BATCH = 1_000_000, 2_000
EVENTS_PER_S = 50_000


@dataclass(frozen=True)
class Candidate:
    """A quantile sketch after a million log-normal values in batches; errors in ranks, 0 to 1."""

    name: str
    ns_per_value: float
    size_bytes: int
    merge_us: float
    largest_error: float
    tail_error: float


def candidates() -> list[Candidate]:
    builders: dict[str, tuple[Callable[[], Any], type]] = {
        "KLL k=200": (lambda: datasketches.kll_doubles_sketch(200), np.float64),
        "KLL k=400": (lambda: datasketches.kll_doubles_sketch(400), np.float64),
        "REQ k=12": (lambda: datasketches.req_floats_sketch(12), np.float32),
        "REQ k=24": (lambda: datasketches.req_floats_sketch(24), np.float32),
        "t-digest k=100": (lambda: datasketches.tdigest_double(100), np.float64),
        "t-digest k=200": (lambda: datasketches.tdigest_double(200), np.float64),
    }
    values = np.random.default_rng(0).lognormal(sigma=1.5, size=VALUES)
    return [_candidate(name, build, values.astype(kind)) for name, (build, kind) in builders.items()]


def _candidate(name: str, build: Callable[[], Any], values: np.ndarray) -> Candidate:
    ordered, ranks = np.sort(values), np.linspace(0.001, 0.999, 999)
    batches = np.split(values, VALUES // BATCH)
    sketch = build()
    began = time.process_time()
    for batch in batches:
        sketch.update(batch)
    spent = time.process_time() - began
    parts = [build() for _ in range(50)]
    for index, batch in enumerate(batches):
        parts[index % 50].update(batch)
    merged = build()
    began = time.process_time()
    for part in parts:
        merged.merge(part)
    merge_s = (time.process_time() - began) / len(parts)
    found = np.searchsorted(ordered, [merged.get_quantile(rank) for rank in ranks]) / VALUES
    errors = np.abs(found - ranks)
    return Candidate(
        name,
        spent / VALUES * 1e9,
        len(merged.serialize()),
        merge_s * 1e6,
        float(errors.max()),
        float(max(errors[0], errors[-1])),
    )


def share_of_a_core(batch: int, seconds: float = 2.0) -> float:
    """Return what 8 numeric and 2 categorical features cost at 50,000 events/s, as a share of one core."""
    random = np.random.default_rng(0)
    edges = np.quantile(random.lognormal(size=10_000), np.linspace(0, 1, 21))
    numbers = [random.lognormal(size=batch) for _ in range(8)]
    texts = [pa.array([f"c{index}" for index in random.integers(0, kinds, batch)]) for kinds in (16, 300)]
    numeric = [NumericSketch(edges) for _ in numbers]
    categories = [CategorySketch([f"c{index}" for index in range(kinds)]) for kinds in (16, 300)]
    events, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        for sketch, column in zip(numeric, numbers, strict=True):
            sketch.update(column)
        for sketch, column in zip(categories, texts, strict=True):
            sketch.update(column)
        events += batch
    return (time.process_time() - began) / events * EVENTS_PER_S
