"""One row answered."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from services.router.domain.plan import EncodedRow
from services.router.domain.ports import PredictionId
from services.router.domain.reading import Reading
from services.router.domain.routing import Choice

FEATURES_DEFAULT: Final = "features_default"
FEATURES_UNAVAILABLE: Final = "features_unavailable"
FALLBACK: Final = "fallback"
STATIC_PREDICTION: Final = "static_prediction"
"""Who served an answer that no version gave."""


@dataclass(slots=True)
class Answer:
    """What one row is answered; times in milliseconds. `fixed` means that a fixed prediction of the route answered."""

    id: PredictionId
    reading: Reading
    choice: Choice
    flagged: tuple[str, ...]
    degraded: tuple[str, ...]
    latency_ms: float
    missing: tuple[str, ...] = ()
    """Fetched features that had no usable value."""
    fixed: bool = False

    @property
    def model_version(self) -> str:
        """Id of the version that answered; empty when none did."""
        return "" if self.fixed else self.choice.target.version.id

    @property
    def served_by(self) -> str:
        """The deployment that answered, or that a fixed prediction did."""
        return STATIC_PREDICTION if self.fixed else self.choice.target.deployment.name


def new_answer(
    prediction_id: PredictionId,
    reading: Reading,
    choice: Choice,
    encoded: EncodedRow,
    started: float,
    *,
    features_down: bool = False,
    on_a_rung: bool = False,
    missing: Iterable[str] = (),
) -> Answer:
    """Return the answer to an encoded row; `started` is of `time.perf_counter()`."""
    degraded: tuple[str, ...] = ()
    if features_down or encoded.defaulted or on_a_rung:
        ways = {FEATURES_UNAVAILABLE: features_down, FEATURES_DEFAULT: encoded.defaulted, FALLBACK: on_a_rung}
        degraded = tuple(way for way, holds in ways.items() if holds)
    return Answer(prediction_id, reading, choice, encoded.flagged, degraded, elapsed_ms(started), tuple(missing))


def elapsed_ms(started: float) -> float:
    """Return the milliseconds since `started`, of `time.perf_counter()`."""
    # Microseconds are all that the clock is good for.
    return round((time.perf_counter() - started) * 1e3, 3)
