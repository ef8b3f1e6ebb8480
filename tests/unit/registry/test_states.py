"""States of a deployment, tokens of a watcher, and who is woken when."""

import asyncio

import pytest

from services.common.errors import InvalidArgument
from services.registry.adapters.bell import Bell
from services.registry.domain.failure import WatchEnded, WatchTokenExpired
from services.registry.domain.ports import Scope
from services.registry.domain.replica import ReplicaStatus, State, derive_state
from services.registry.domain.watch import make_token, parse_token
from tests.unit.registry.builders import NOW

PENDING, LOADING, READY, FAILED = State.PENDING, State.LOADING, State.READY, State.FAILED


@pytest.mark.parametrize(
    ("said", "state", "message"),
    [
        ([], PENDING, "no replica has taken it up"),
        ([LOADING], LOADING, "0 of 1 replicas are ready, some are loading it"),
        ([LOADING, LOADING], LOADING, "0 of 2 replicas are ready, some are loading it"),
        ([READY], READY, "1 of 1 replicas are ready"),
        ([FAILED, READY, LOADING], READY, "1 of 3 replicas are ready"),
        ([LOADING, FAILED, FAILED], FAILED, "replica r1: no such operator"),
    ],
)
def test_the_state_follows_from_the_replicas(said: list[State], state: State, message: str) -> None:
    statuses = [ReplicaStatus(f"r{index}", each, "no such operator", NOW) for index, each in enumerate(said)]
    assert derive_state(statuses) == (state, message)


PRODUCTION = Scope(environment="production")


def test_a_token_is_read_back() -> None:
    assert parse_token(make_token("ab" * 16, PRODUCTION, 77), "ab" * 16, PRODUCTION) == 77


def test_a_token_of_another_database_is_as_if_too_old() -> None:
    with pytest.raises(WatchTokenExpired):
        parse_token(make_token("cd" * 16, PRODUCTION, 77), "ab" * 16, PRODUCTION)


@pytest.mark.parametrize("scope", [Scope(environment="dev"), Scope(pool="production")])
def test_a_token_is_good_for_its_selector_only(scope: Scope) -> None:
    with pytest.raises(InvalidArgument, match="selector"):
        parse_token(make_token("ab" * 16, PRODUCTION, 77), "ab" * 16, scope)


@pytest.mark.parametrize("token", ["x", "-", "--", "a-b-", "a-b-zz", "a-b--1", "a-b-1-2", "\x00"])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument, match="resume_token"):
        parse_token(token, "ab" * 16, PRODUCTION)


async def test_a_waiter_is_woken_by_a_later_epoch_only() -> None:
    bell = Bell()
    bell.ring(5)
    await bell.wait(4, 60)
    waiting = asyncio.ensure_future(bell.wait(5, 60))
    await asyncio.sleep(0)
    assert bell.waiting == 1
    bell.ring(5)
    bell.ring(3)
    await asyncio.sleep(0)
    assert not waiting.done()
    bell.ring(6)
    await waiting
    assert bell.waiting == 0


async def test_waiting_ends_with_the_time_out_or_the_process() -> None:
    bell = Bell()
    await bell.wait(0, 0)
    waiting = asyncio.ensure_future(bell.wait(0, 60))
    await asyncio.sleep(0)
    bell.close()
    with pytest.raises(WatchEnded):
        await waiting
    with pytest.raises(WatchEnded):
        await bell.wait(0, 60)
