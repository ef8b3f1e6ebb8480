"""The breaker: opens for a peer that fails, tries it again by itself, and learns nothing from cancellations."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.common.breaker import AsyncBreaker, CircuitOpen


class Down(Exception):
    """The peer failed."""


class Lost(Exception):
    """The peer failed, beyond doubt."""


class Peer:
    """A peer behind a breaker, a clock that tests move, and the breaker's pauses, which end when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.states: list[str] = []
        self.fault: BaseException | None = None
        """What probes end with."""
        self.probes = 0
        self.pauses: list[float] = []
        self._goes_on = asyncio.Semaphore(0)
        self.breaker = AsyncBreaker(
            "peer",
            lambda error: 5 * isinstance(error, Lost) + isinstance(error, Down),
            self._probe,
            on_state=self.states.append, clock=lambda: self.now, sleep=self._pause,
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

    async def let_probe(self, times: int = 1) -> None:
        """Let the breaker's pauses end, one after the other, and see how each probe ends."""
        for _ in range(times):
            probes = self.probes
            self._goes_on.release()
            while self.probes == probes:
                await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def _probe(self) -> None:
        self.probes += 1
        if self.fault is not None:
            raise self.fault

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await self._goes_on.acquire()


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    made = Peer()
    yield made
    await made.breaker.close()


async def test_five_failures_in_a_row_open_it_and_nothing_is_sent_any_more(peer: Peer) -> None:
    await peer.fail(4)
    await peer.ask()
    await peer.fail(5)
    with pytest.raises(CircuitOpen):
        await peer.ask()
    assert peer.breaker.refuses
    assert peer.states == ["closed", "open"]


async def test_a_failure_may_count_for_as_many_as_it_takes(peer: Peer) -> None:
    with pytest.raises(Lost):
        await peer.ask(Lost())
    assert peer.breaker.refuses


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


async def test_no_call_is_a_probe_and_three_good_ones_close_it_without_any_call(peer: Peer) -> None:
    await peer.fail(5)
    for _ in range(3):
        for _ in range(20):
            with pytest.raises(CircuitOpen):
                await peer.ask()
        await peer.let_probe()
    assert peer.probes == 3
    await peer.ask()
    assert peer.states == ["closed", "open", "half-open", "closed"]


async def test_a_bad_probe_begins_the_row_anew(peer: Peer) -> None:
    await peer.fail(5)
    await peer.let_probe(2)
    peer.fault = Down()
    await peer.let_probe()
    assert peer.breaker.state == "open"
    peer.fault = None
    await peer.let_probe(2)
    assert peer.breaker.refuses
    await peer.let_probe()
    assert not peer.breaker.refuses


async def test_each_bad_probe_doubles_the_pause_up_to_the_longest(peer: Peer) -> None:
    peer.fault = Down()
    await peer.fail(5)
    await peer.let_probe(5)
    peer.fault = None
    await peer.let_probe(3)
    for pause, middle in zip(peer.pauses, (0.05, 0.1, 0.2, 0.4, 0.5, 0.5, 0.05, 0.05), strict=True):
        assert 0.8 * middle <= pause <= 1.2 * middle


async def test_a_probe_that_fails_for_another_reason_shows_that_the_peer_is_there(peer: Peer) -> None:
    peer.fault = ValueError("mine")
    await peer.fail(5)
    await peer.let_probe(3)
    assert not peer.breaker.refuses


async def test_a_probe_that_is_given_up_is_no_end_of_probing(peer: Peer) -> None:
    peer.fault = asyncio.CancelledError()
    await peer.fail(5)
    await peer.let_probe(2)
    peer.fault = None
    await peer.let_probe(3)
    assert not peer.breaker.refuses


async def test_it_opens_and_closes_time_and_again(peer: Peer) -> None:
    for _ in range(3):
        await peer.fail(5)
        assert peer.breaker.refuses
        await peer.let_probe(3)
        assert not peer.breaker.refuses
        await peer.fail(4)
        await peer.ask()


async def test_a_call_that_began_before_it_opened_tells_nothing_new(peer: Peer) -> None:
    gate = asyncio.Event()
    late = [asyncio.ensure_future(peer.ask(error, gate)) for error in (None, Down())]
    await asyncio.sleep(0)
    await peer.fail(5)
    gate.set()
    await asyncio.gather(*late, return_exceptions=True)
    assert peer.states == ["closed", "open"]
    await peer.let_probe(3)
    await peer.fail(4)
    assert not peer.breaker.refuses


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


async def test_calls_run_side_by_side(peer: Peer) -> None:
    gate = asyncio.Event()
    calls = [asyncio.ensure_future(peer.ask(gate=gate)) for _ in range(10)]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*calls)
