"""What an examination finds."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `fix` says what to do when it is not good."""

    name: str
    good: bool
    detail: str
    fix: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the finding as plain values."""
        return asdict(self)
