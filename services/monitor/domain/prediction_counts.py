"""Counts of predictions by model, version and variant, in bounded memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

OTHER: Final = "_other"


@dataclass(frozen=True, slots=True, order=True)
class VariantKey:
    """Who answered. An empty variant means that the caller pinned the version."""

    model: str
    version: str
    variant: str


# No id begins with an underscore, so this cannot be anybody's model.
OVERFLOW: Final = VariantKey(OTHER, OTHER, OTHER)


@dataclass(slots=True)
class Outcomes:
    """How many predictions were answered and how many failed."""

    ok_count: int = 0
    error_count: int = 0


class PredictionCounts:
    """Counts since the process started; keys beyond `limit` share one count, `_other`."""

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"limit: want at least 1, got {limit}")
        # The shared count is one of them, so that no answer ever holds more than `limit`.
        self._own_limit = limit - 1
        self._outcomes: dict[VariantKey, Outcomes] = {}

    def add(self, key: VariantKey, *, ok_count: int, error_count: int) -> None:
        """Count predictions of one variant."""
        outcomes = self._outcomes_of(key)
        outcomes.ok_count += ok_count
        outcomes.error_count += error_count

    def of_model(self, model: str = "") -> Iterator[tuple[VariantKey, Outcomes]]:
        """Yield the counts of one model, or of all, sorted by key."""
        for key in sorted(self._outcomes):
            if model in ("", key.model):
                yield key, self._outcomes[key]

    def _outcomes_of(self, key: VariantKey) -> Outcomes:
        found = self._outcomes.get(key)
        if found is not None:
            return found
        own = len(self._outcomes) - (OVERFLOW in self._outcomes)
        return self._outcomes.setdefault(key if own < self._own_limit else OVERFLOW, Outcomes())
