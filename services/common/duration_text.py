"""Durations as people write them in definitions: 36h, 7d, 1h30m, 500ms."""

import re
from datetime import timedelta
from typing import Final

DURATION_FORM: Final = 'a duration such as "36h", "7d", "1h30m" or "500ms"'
_UNITS: Final = {
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "ms": timedelta(milliseconds=1),
    "us": timedelta(microseconds=1),
}
_PART: Final = re.compile(r"([0-9]{1,12})(d|h|ms|m|us|s)", re.ASCII)


def parse_duration(text: str) -> timedelta | None:
    """Return the duration, None for a text that is none; units come at most once each, the largest first."""
    if text == "0":
        return timedelta()
    found, units, end = timedelta(), list(_UNITS), 0
    while end < len(text):
        part = _PART.match(text, end)
        if part is None or part[2] not in units:
            return None
        del units[: units.index(part[2]) + 1]
        try:
            found += int(part[1]) * _UNITS[part[2]]
        except OverflowError:
            return None
        end = part.end()
    return found if text else None


def format_duration(duration: timedelta) -> str:
    """Return the shortest text that `parse_duration` reads as the duration; negative ones begin with a minus sign.

    Days only when it is whole days: 36 hours are 36h.
    """
    if duration < timedelta():
        return f"-{format_duration(-duration)}"
    if duration and not duration % _UNITS["d"]:
        return f"{duration // _UNITS['d']}d"
    parts, rest = [], duration
    for unit in list(_UNITS)[1:]:
        count, rest = divmod(rest, _UNITS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0"
