"""Checks of free text, digests and labels that several resources share."""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from services.common.errors import Violation, echo

_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def is_digest(text: str) -> bool:
    """Return whether this is a SHA-256 as the contract writes it: 64 hexadecimal digits in lower case."""
    return _DIGEST.fullmatch(text) is not None


def check_digest(text: str, path: str) -> Iterator[Violation]:
    """Yield what is wrong with a digest."""
    if not is_digest(text):
        yield Violation(path, f"want 64 hexadecimal digits in lower case, got {echo(text)}")


def check_text(text: str, path: str, limit_chars: int, *, required: bool = False) -> Iterator[Violation]:
    """Yield what is wrong with a text: missing, too long, or with control characters other than tab and new line."""
    if required and not text:
        yield Violation(path, f"want 1 to {limit_chars} characters, got nothing")
    elif len(text) > limit_chars:
        yield Violation(path, f"want at most {limit_chars} characters, got {len(text)}")
    elif _CONTROL.search(text):
        yield Violation(path, f"want text without control characters, got {echo(text)}")


def check_pairs(
    pairs: Mapping[str, str], path: str, *, limit: int, key_chars: int, value_chars: int
) -> Iterator[Violation]:
    """Yield what is wrong with free labels: too many, or a key or value that is too long."""
    if len(pairs) > limit:
        yield Violation(path, f"want at most {limit}, got {len(pairs)}")
        return
    for key, value in sorted(pairs.items()):
        yield from check_text(key, f"{path} key {echo(key)}", key_chars, required=True)
        yield from check_text(value, f"{path}[{echo(key)}]", value_chars)
