"""What one router's stream of events tells about itself: what it dropped, and what was lost on the way."""

from dataclasses import dataclass


@dataclass(slots=True)
class StreamTotals:
    """Totals over all streams since the process started."""

    batch_count: int = 0
    prediction_count: int = 0
    dropped_count: int = 0
    """Predictions that routers say they dropped."""
    missing_batch_count: int = 0
    """Batches whose number was skipped."""
    open_stream_count: int = 0


class SequenceBroken(Exception):
    """A batch's number is not above the one before; batches are numbered from 1."""

    def __init__(self, last: int, got: int) -> None:
        super().__init__(f"want more than {last}, got {got}")


class EventStream:
    """One stream: checks the numbers of its batches and adds to the totals."""

    def __init__(self, totals: StreamTotals) -> None:
        self._totals = totals
        self._last_sequence = 0
        self.prediction_count = 0

    def take(self, sequence: int, prediction_count: int, dropped_count: int) -> None:
        """Count a batch; raises SequenceBroken, and counts nothing, when its number does not follow."""
        if sequence <= self._last_sequence:
            raise SequenceBroken(self._last_sequence, sequence)
        self._totals.missing_batch_count += sequence - self._last_sequence - 1
        self._last_sequence = sequence
        self._totals.batch_count += 1
        self._totals.prediction_count += prediction_count
        self._totals.dropped_count += dropped_count
        self.prediction_count += prediction_count
