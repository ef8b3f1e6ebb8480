"""Queries of death: a request that was running when its worker died must not kill one worker after the other.

The members of the batch that was running are suspects. A suspect that comes again runs alone, so that it cannot take
anybody along, and one that was alone when a worker died is refused for a while. Payloads are only hashed while there are
suspects.
"""

import hashlib
from collections.abc import Sequence
from itertools import count
from typing import Final

from services.common.errors import Unavailable
from services.inference.domain.item import Item

_SECONDS: Final = 60.0
_MAX_SUSPECTS: Final = 4_096


class Quarantined(Unavailable):
    """The same request ended a model's process twice."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(
            "the same request ended the model's process twice and is refused for a while; change its values",
            reason="WORKER_DIED",
            retry_after_s=retry_after_s,
        )


class Quarantine:
    """Suspects of one version, by the hash of their tensors. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._suspects: dict[bytes, float] = {}
        self._guilty: dict[bytes, float] = {}
        self._solo = count(1)

    def check(self, item: Item, now: float) -> None:
        """Raise `Quarantined` for a proven killer, and make a suspect run alone."""
        if not self._suspects:
            return
        name = _fingerprint(item.inputs)
        if self._guilty.get(name, 0.0) > now:
            raise Quarantined(self._guilty[name] - now)
        if self._suspects.get(name, 0.0) > now:
            item.key = item.key._replace(solo=next(self._solo))

    def blame(self, items: Sequence[Item], now: float) -> None:
        """Remember what ran when a worker died."""
        self._forget(now)
        for item in items:
            name = _fingerprint(item.inputs)
            if len(items) == 1 and name in self._suspects:
                self._guilty[name] = now + _SECONDS
            if len(self._suspects) < _MAX_SUSPECTS:
                self._suspects[name] = now + _SECONDS

    def _forget(self, now: float) -> None:
        self._suspects = {name: until for name, until in self._suspects.items() if until > now}
        self._guilty = {name: until for name, until in self._guilty.items() if until > now}


def _fingerprint(inputs: Sequence[bytes]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for data in inputs:
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()
