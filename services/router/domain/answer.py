"""One row asked and answered."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from services.router.domain.plan import EncodedRow
from services.router.domain.ports import PredictionId
from services.router.domain.reading import Reading
from services.router.domain.routing import Choice

FEATURES_DEFAULT: Final = "features_default"


@dataclass(frozen=True, slots=True)
class Row:
    """What one row is predicted from."""

    features: Mapping[str, object]
    user_id: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one row is answered; times in milliseconds."""

    id: PredictionId
    reading: Reading
    choice: Choice
    flagged: tuple[str, ...]
    degraded: tuple[str, ...]
    latency_ms: float


def new_answer(
    prediction_id: PredictionId, reading: Reading, choice: Choice, encoded: EncodedRow, started: float
) -> Answer:
    """Return the answer to an encoded row; `started` is of `time.perf_counter()`."""
    degraded = (FEATURES_DEFAULT,) if encoded.defaulted else ()
    # Microseconds are all that the clock is good for.
    latency_ms = round((time.perf_counter() - started) * 1e3, 3)
    return Answer(prediction_id, reading, choice, encoded.flagged, degraded, latency_ms)
