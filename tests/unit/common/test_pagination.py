"""Page sizes and tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidArgument
from services.common.pagination import parse_page


@pytest.mark.parametrize(("asked", "given_"), [(0, 50), (1, 1), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)])
def test_the_size_has_a_default_and_is_clamped(asked: int, given_: int) -> None:
    assert parse_page(asked, "").size == given_


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"page_size: want 0 \(default 50\) to 1000, got -1"):
        parse_page(-1, "")


@given(st.text(min_size=1, max_size=200).filter(lambda key: key.encode("utf-8", "ignore").decode() == key))
def test_a_token_leads_behind_the_last_key(key: str) -> None:
    filters = {"list": "models", "parent": "x"}
    token = parse_page(10, "", filters).next_token(key)
    assert parse_page(10, token, filters).after == key
    assert token.isascii()


def test_a_token_of_other_filters_is_refused() -> None:
    token = parse_page(10, "", {"parent": "models/a"}).next_token("3")
    with pytest.raises(InvalidArgument) as caught:
        parse_page(10, token, {"parent": "models/b"})
    assert caught.value.reason == "INVALID_PAGE_TOKEN"


@pytest.mark.parametrize("token", ["x", "!!!!", "é", "AAAA", "A" * 5000, "\n", "/+/+", "////////////////8A"])
def test_a_made_up_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_page(10, token)
    assert caught.value.reason == "INVALID_PAGE_TOKEN"
    assert len(caught.value.message) < 300
