"""Golden rows: inputs and the answers that a version must give to them before it may serve."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from interlock.registry.v1 import model_version_pb2 as pb

from interlock_sdk.tensors import tensor_to_proto

MAX_GOLDEN_ROWS = 64


def golden_rows(
    inputs: Mapping[str, npt.NDArray[Any]],
    outputs: Mapping[str, npt.NDArray[Any]],
    *,
    absolute_tolerance: float,
    relative_tolerance: float = 0.0,
) -> list[pb.GoldenRow]:
    """Splits batches of inputs and expected outputs, by tensor name and batch first, into one golden row per row.

    Take the outputs from the model as it was trained and not from the exported file, or the check shows nothing.

    Raises:
        ValueError: more than MAX_GOLDEN_ROWS rows, or tensors of different lengths.
    """
    counts = {len(array) for array in (*inputs.values(), *outputs.values())}
    if len(counts) != 1 or (count := counts.pop()) > MAX_GOLDEN_ROWS:
        raise ValueError(f"want 1 to {MAX_GOLDEN_ROWS} rows, equally many in each tensor, got {sorted(counts)}")
    return [
        pb.GoldenRow(
            inputs=[tensor_to_proto(name, array[row : row + 1]) for name, array in inputs.items()],
            outputs=[tensor_to_proto(name, array[row : row + 1]) for name, array in outputs.items()],
            absolute_tolerance=absolute_tolerance,
            relative_tolerance=relative_tolerance,
        )
        for row in range(count)
    ]


def spread_positions(values: npt.ArrayLike, count: int) -> npt.NDArray[np.int64]:
    """Picks positions whose values are spread evenly from the smallest to the largest by rank, both included."""
    order = np.argsort(np.asarray(values), kind="stable")
    ranks = np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(np.int64))
    return order[ranks]
