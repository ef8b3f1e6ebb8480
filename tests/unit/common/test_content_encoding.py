"""Compressed REST bodies."""

import gzip
import zlib

import pytest

from services.common.content_encoding import decoded
from services.common.errors import InvalidArgument, ResourceExhausted

BODY = b'{"model": "m"}' * 100
LIMIT = 10_000


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(BODY, mtime=0)),
        (" GZIP ", gzip.compress(BODY, mtime=0)),
        ("deflate", zlib.compress(BODY)),
    ],
)
def test_a_body_is_what_it_was_before_it_was_compressed(encoding: str, body: bytes) -> None:
    assert decoded(body, encoding, LIMIT) == BODY


def test_a_body_without_an_encoding_is_left_alone() -> None:
    assert decoded(BODY, "", 1) == decoded(BODY, "identity", 1) == BODY


@pytest.mark.parametrize(
    ("encoding", "body", "text"),
    [
        ("br", BODY, "want gzip, deflate or identity, got .br."),
        ("gzip", BODY, "want a body in gzip"),
        ("gzip", gzip.compress(BODY, mtime=0)[:-1], "ends early"),
    ],
)
def test_what_is_not_in_its_encoding_is_refused_in_words(encoding: str, body: bytes, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text) as refused:
        decoded(body, encoding, LIMIT)
    assert refused.value.violations[0].field == "content-encoding"


def test_a_bomb_is_not_unpacked() -> None:
    with pytest.raises(ResourceExhausted, match="more than 10000 bytes, the limit is 10000"):
        decoded(gzip.compress(bytes(100_000_000), 1), "gzip", LIMIT)
