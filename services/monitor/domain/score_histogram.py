"""Predicted probabilities in fine bins: what AUC, calibration and the label-free estimate are computed from."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from services.monitor.domain.profile import FloatArray

SCORE_BINS: Final = 2_048
"""Bins of equal width in arcsin(sqrt(p)), which has about the same noise everywhere: narrow near 0 and 1, where rare
classes have their probabilities, and at most 0.0008 wide."""
SCORE_EDGES: Final = np.sin(np.linspace(0, np.pi / 2, SCORE_BINS + 1)) ** 2


def score_bins(probabilities: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the bin of each probability; values outside 0 to 1 go to the ends."""
    clipped = np.clip(np.asarray(probabilities, dtype=np.float64), 0.0, 1.0)
    bins = np.asarray(np.arcsin(np.sqrt(clipped)) * (SCORE_BINS * 2 / np.pi), dtype=np.int64)
    return np.minimum(bins, SCORE_BINS - 1)


@dataclass(frozen=True, slots=True)
class RocFigures:
    """Area under the ROC curve of two histograms of scores."""

    area: FloatArray
    variance: FloatArray
    bin_error: FloatArray
    """Largest error from binning."""


def roc_figures(positives: FloatArray, negatives: FloatArray) -> RocFigures:
    """Return the area between counts [..., bins] of scores, rising, over the last axis; ties in a bin count half.

    Variance: DeLong, DeLong and Clarke-Pearson, Comparing the areas under two or more correlated ROC curves (1988), which
    depends on the ranks only, so it can be had from bins. NaN where a class is empty.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        positive_count, negative_count = positives.sum(axis=-1), negatives.sum(axis=-1)
        # Of each positive the share of negatives below it, and of each negative the share of positives above it.
        below = (np.cumsum(negatives, axis=-1) - negatives / 2) / negative_count[..., None]
        above = 1 - (np.cumsum(positives, axis=-1) - positives / 2) / positive_count[..., None]
        area = (positives * below).sum(axis=-1) / positive_count
        first = (positives * (below - area[..., None]) ** 2).sum(axis=-1) / np.maximum(positive_count - 1, 1)
        second = (negatives * (above - area[..., None]) ** 2).sum(axis=-1) / np.maximum(negative_count - 1, 1)
        variance = first / positive_count + second / negative_count
        bin_error = (positives * negatives).sum(axis=-1) / (2 * positive_count * negative_count)
    return RocFigures(np.asarray(area), np.asarray(variance), np.asarray(bin_error))


def pack_sparse(values: FloatArray) -> bytes:
    """Return an encoding of mostly empty bins: how many are filled, which, and what they hold."""
    filled = np.flatnonzero(values)
    size = np.array([filled.size], "<u4").tobytes()
    return size + filled.astype("<u2").tobytes() + values[filled].astype("<f8").tobytes()


def unpack_sparse(data: memoryview, bins: int = SCORE_BINS) -> tuple[FloatArray, memoryview]:
    """Return the bins and what follows them; raises ValueError."""
    size = int(np.frombuffer(data, "<u4", 1)[0])
    filled = np.frombuffer(data, "<u2", size, 4)
    values = np.zeros(bins)
    if size and filled.max() >= bins:
        raise ValueError(f"want bins below {bins}, got {filled.max()}")
    values[filled] = np.frombuffer(data, "<f8", size, 4 + 2 * size)
    return values, data[4 + 10 * size :]
