"""What is refused first under overload, and how a caller may say it."""

from enum import IntEnum
from typing import Final


class Criticality(IntEnum):
    """Classes of calls, the most critical first; numbers are those of `interlock.inference.v1.Criticality`."""

    CRITICAL = 1
    DEFAULT = 2
    SHEDDABLE = 3


_BY_WORD: Final = {level.name.lower(): level for level in Criticality}


def criticality_of(word: str) -> Criticality:
    """Return the class of that name, such as "sheddable"; what is not given, or not known yet, is ordinary traffic."""
    return _BY_WORD.get(word.lower(), Criticality.DEFAULT)
