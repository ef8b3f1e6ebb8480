"""Words for what a caller sent, safe to say back."""

import difflib
from collections.abc import Iterable
from typing import Final

from services.common.errors import echo

_SUGGEST_LIMIT_CHARS: Final = 128
_SUGGEST_CUTOFF: Final = 0.6


def describe(value: object) -> str:
    """Return a caller's value as it may stand in a message: short, and without control characters."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, str):
        return f"the text {echo(value)}"
    return f"a list of {len(value)} values" if isinstance(value, list | tuple) else "an object"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean "..."?` for the nearest known name, or an empty string when none is near."""
    if len(name) > _SUGGEST_LIMIT_CHARS:
        return ""
    names = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=_SUGGEST_CUTOFF)
    return f"; did you mean {echo(names[near[0]])}?" if near else ""


def _number(value: float) -> str:
    if isinstance(value, int) and value.bit_length() > 128:
        # str() of a huge int is quadratic, and the caller chose it.
        return f"a number of {value.bit_length()} bits"
    return str(value)
