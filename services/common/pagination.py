"""Pages of a list: a clamped size and an opaque token that is good for the same filters only."""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from services.common.errors import INVALID_FIELD, InvalidArgument, Violation, echo

DEFAULT_PAGE_SIZE: Final = 50
MAX_PAGE_SIZE: Final = 1000
_FILTER_DIGEST_BYTES: Final = 12
_TOKEN_LIMIT_CHARS: Final = 2048


@dataclass(frozen=True)
class Page:
    """What to fetch: at most `size` items after the key `after` (empty for the first page)."""

    size: int
    after: str
    filters: Mapping[str, str]

    def next_token(self, last_key: str) -> str:
        """Return the token of the page after `last_key`; at the end of the list send an empty token instead."""
        payload = _digest(self.filters) + last_key.encode()
        return base64.urlsafe_b64encode(payload).decode().rstrip("=")


def parse_page(
    page_size: int,
    page_token: str,
    filters: Mapping[str, str] | None = None,
    *,
    default_size: int = DEFAULT_PAGE_SIZE,
    max_size: int = MAX_PAGE_SIZE,
) -> Page:
    """Return the page that a list request asks for.

    `filters` are all request fields that choose what is listed, the kind of list among them. 0 means `default_size`,
    more than `max_size` is clamped. Raises InvalidArgument for a negative size, an unknown token, or other filters.
    """
    if page_size < 0:
        wrong = Violation("page_size", f"want 0 (default {default_size}) to {max_size}, got {page_size}")
        raise InvalidArgument(f"page_size: {wrong.description}", reason=INVALID_FIELD, violations=[wrong])
    chosen = dict(filters or {})
    return Page(min(page_size or default_size, max_size), _after(page_token, chosen), chosen)


def _after(token: str, filters: Mapping[str, str]) -> str:
    if not token:
        return ""
    try:
        payload = _decode(token)
        digest, key = payload[:_FILTER_DIGEST_BYTES], payload[_FILTER_DIGEST_BYTES:].decode()
    except (ValueError, binascii.Error):
        raise _token_refusal(token, "want a next_page_token of an earlier answer") from None
    if digest != _digest(filters) or not key:
        raise _token_refusal(token, "want the filters that the token was given for, or no token to begin anew")
    return key


def _decode(token: str) -> bytes:
    if len(token) > _TOKEN_LIMIT_CHARS:
        raise ValueError(len(token))
    padded = token + "=" * (-len(token) % 4)
    return base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True)


def _token_refusal(token: str, want: str) -> InvalidArgument:
    wrong = Violation("page_token", f"{want}; got {echo(token)}")
    return InvalidArgument(f"page_token: {wrong.description}", reason="INVALID_PAGE_TOKEN", violations=[wrong])


def _digest(filters: Mapping[str, str]) -> bytes:
    return hashlib.sha256(json.dumps(filters, sort_keys=True).encode()).digest()[:_FILTER_DIGEST_BYTES]
