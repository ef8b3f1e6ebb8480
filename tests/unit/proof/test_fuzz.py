"""The short form of `tests/proof/fuzz.py`; the fuzz itself finds what it should."""

import random

import pytest

from services.common.errors import DataLoss, InvalidArgument
from tests.proof.fuzz import Bug, Target, ask, mutated, targets

TARGETS = targets()


@pytest.mark.parametrize("name", TARGETS)
def test_bytes_that_are_hardly_a_request_are_the_callers_mistake(name: str) -> None:
    target, draw = TARGETS[name], random.Random(name)
    assert any(ask(target, body) for body in target.good)
    accepted = sum(ask(target, mutated(draw, target.good)) for _ in range(2_000))
    assert 0 < accepted < 1_000


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), DataLoss("x", reason="X"), InvalidArgument("<class 'router_pb2.X'>", reason="INVALID_FIELD")],
)
def test_what_no_caller_should_get_is_a_bug(error: Exception) -> None:
    def read(body: bytes) -> None:
        raise error

    with pytest.raises((Bug, KeyError)):
        ask(Target(read, [b""]), b"")
