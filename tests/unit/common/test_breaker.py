"""The breaker: opens for a peer that fails, lets one probe through at a time, and learns nothing from cancellations."""

import asyncio

import pytest

from services.common.breaker import AsyncBreaker, CircuitOpen


class Down(Exception):
    """The peer failed."""


class Peer:
    """A peer behind a breaker, and a clock that tests move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.states: list[str] = []
        self.breaker = AsyncBreaker(
            "peer", lambda error: isinstance(error, Down),
            first_open_s=1.0, longest_open_s=4.0, on_state=self.states.append, clock=lambda: self.now,
        )  # fmt: skip

    async def ask(self, error: BaseException | None = None, gate: asyncio.Event | None = None) -> None:
        with self.breaker.guard():
            await (gate.wait() if gate else asyncio.sleep(0))
            if error is not None:
                raise error

    async def fail(self, times: int = 1) -> None:
        for _ in range(times):
            with pytest.raises(Down):
                await self.ask(Down())


@pytest.fixture
def peer() -> Peer:
    return Peer()


async def test_five_failures_in_a_row_open_it_and_nothing_is_sent_any_more(peer: Peer) -> None:
    await peer.fail(4)
    await peer.ask()
    await peer.fail(5)
    with pytest.raises(CircuitOpen):
        await peer.ask()
    assert peer.breaker.refuses
    assert peer.states == ["closed", "open"]


async def test_every_second_call_failing_opens_it(peer: Peer) -> None:
    for _ in range(10):
        assert peer.breaker.state == "closed"
        await peer.ask()
        await peer.fail()
    assert peer.breaker.state == "open"


async def test_failures_of_long_ago_do_not_count(peer: Peer) -> None:
    for _ in range(40):
        peer.now += 1.2
        await peer.ask()
        await peer.fail()
    assert peer.breaker.state == "closed"


async def test_one_probe_at_a_time_and_three_good_ones_close_it(peer: Peer) -> None:
    await peer.fail(5)
    peer.now += 1.3
    gate = asyncio.Event()
    probes = [asyncio.ensure_future(peer.ask(gate=gate)) for _ in range(20)]
    await asyncio.sleep(0)
    gate.set()
    outcomes = await asyncio.gather(*probes, return_exceptions=True)
    assert sum(outcome is None for outcome in outcomes) == 1
    assert peer.breaker.state == "half-open"
    await peer.ask()
    await peer.ask()
    assert peer.states == ["closed", "open", "half-open", "closed"]


async def test_each_failed_probe_doubles_the_wait_up_to_the_longest(peer: Peer) -> None:
    await peer.fail(5)
    for longest_s, shortest_s in ((1.2, 0.8), (2.4, 1.6), (4.8, 3.2), (4.8, 3.2)):
        opened = peer.now
        peer.now = opened + shortest_s - 0.01
        assert peer.breaker.refuses
        peer.now = opened + longest_s
        await peer.fail()


async def test_a_hundred_cancellations_and_mistakes_change_nothing(peer: Peer) -> None:
    await peer.fail(4)
    for _ in range(100):
        with pytest.raises(asyncio.CancelledError):
            await peer.ask(asyncio.CancelledError())
        with pytest.raises(ValueError, match="mine"):
            await peer.ask(ValueError("mine"))
    assert peer.breaker.state == "closed"
    await peer.fail()
    assert peer.breaker.state == "open"


async def test_a_cancelled_probe_leaves_room_for_the_next(peer: Peer) -> None:
    await peer.fail(5)
    peer.now += 1.3
    with pytest.raises(asyncio.CancelledError):
        await peer.ask(asyncio.CancelledError())
    await peer.ask()
    assert peer.breaker.state == "half-open"


async def test_calls_run_side_by_side(peer: Peer) -> None:
    gate = asyncio.Event()
    calls = [asyncio.ensure_future(peer.ask(gate=gate)) for _ in range(10)]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*calls)
