"""Pages of the registry's lists."""

from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from services.common import names
from services.common.errors import InvalidArgument, Violation, echo
from services.common.pagination import Page, parse_page
from services.registry.domain.resource import Resource
from services.registry.domain.version import is_version_id

_MOST_DIGITS: Final = 18
_ItemT = TypeVar("_ItemT", bound=Resource)


class ListRequest(Protocol):
    """What every list request has."""

    page_size: int
    page_token: str


def page_of(request: ListRequest, kind: str, is_key: Callable[[str], bool], **filters: str) -> Page:
    """Return the page that a request asks for; InvalidArgument for a token whose key is none of this list's."""
    page = parse_page(request.page_size, request.page_token, {"kind": kind, **filters})
    if page.after and not is_key(page.after):
        wrong = Violation("page_token", f"want a next_page_token of an earlier answer; got {echo(request.page_token)}")
        raise InvalidArgument(f"page_token: {wrong.description}", reason="INVALID_PAGE_TOKEN", violations=[wrong])
    return page


def cut(page: Page, items: Sequence[_ItemT]) -> tuple[Sequence[_ItemT], str]:
    """Return the items of a page and the token of the next; `items` are one more than the page holds, if there are."""
    if len(items) <= page.size:
        return items, ""
    return items[: page.size], page.next_token(items[page.size - 1].name)


def is_name(form: names.NameFormat) -> Callable[[str], bool]:
    """Return whether a key is a name of this form."""
    return lambda key: form.violation(key) is None


def is_version_name(key: str) -> bool:
    """Return whether a key is the name of a version, by its id."""
    version_id = key.rsplit("/", 1)[-1]
    return names.VERSION.violation(key) is None and is_version_id(version_id) and len(version_id) <= _MOST_DIGITS


def is_binding_key(key: str) -> bool:
    """Return whether a key is a version and one of its features."""
    version, _, feature = key.partition(" ")
    return is_version_name(version) and bool(feature)


def is_sequence(key: str) -> bool:
    """Return whether a key is a place in the log of changes."""
    return is_version_id(key) and len(key) <= _MOST_DIGITS
