"""Aggregates on a real Redis give what the shared meaning gives, whatever the order, number and moment of pushes."""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from services.features.domain import aggregate_layout
from services.features.domain.aggregates import AggregateValue, Event
from services.features.domain.definitions import AggregateSource
from services.features.domain.ports import Outcome, Status
from tests.fakes.aggregate_world import AggregateWorld, RedisProcess, aggregate_view, redis_process

SECOND = 1_000_000
START = 1_700_000_000 * SECOND
CARRIERS = (f"c{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def server() -> Iterator[RedisProcess]:
    with redis_process() as process:
        yield process


@pytest.fixture(scope="module")
def client(server: RedisProcess) -> Iterator[Redis]:
    with Redis(unix_socket_path=server.socket) as client:
        yield client


@pytest.fixture(scope="module")
def world(client: Redis) -> AggregateWorld:
    """Windows of 5 s and 20 s, slots of 1 s: 85 s after it happened an event is dropped."""
    windows = timedelta(seconds=5), timedelta(seconds=20)
    return AggregateWorld(client, aggregate_view(*windows, lateness=timedelta(seconds=6)))


def event(number: int, at_s: float, delay_s: float = 0.0, **values: Any) -> Event:
    happened = START + round(at_s * SECOND)
    return Event(f"flight-{number}", happened, happened + round(delay_s * SECOND), values)


REAL = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.floats(-100, 100)
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "delay": REAL,
        "seats": st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(0, 300),
        "late": st.none() | st.booleans(),
        "gate": st.none() | st.text(max_size=5),
        "tail": st.none() | st.sampled_from(["", "N1", "é" * 40]),
    },
)


@st.composite
def stories(draw: st.DrawFn) -> list[Event | float]:
    """Pushes, each event once or often and later with other content, among reads (a number: how far back)."""
    span = draw(st.sampled_from([3, 30, 300]))
    quarters = st.integers(0, span * 4) | st.sampled_from([0, 1, 2, 3, 20, 21, 22, 80, 81, 82, 83])
    times = draw(st.lists(quarters.map(lambda quarter: quarter / 4), min_size=1, max_size=25))
    steps: list[Event | float] = []
    for number, at_s in enumerate(times):
        steps.extend(
            event(number, at_s, draw(st.sampled_from([0, 0, 0.25, 2, 6, 7])), **draw(VALUES))
            for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3])))
        )
    if draw(st.booleans()):
        steps = draw(st.permutations(steps))
    reads = draw(
        st.lists(st.tuples(st.integers(0, len(steps)), st.sampled_from([0, 0.25, 1, 5, 6, -3, -30])), max_size=4)
    )
    for place, back_s in reads:
        steps.insert(place, back_s)
    return [*steps, 0]


@pytest.fixture(scope="module")
def worlds(client: Redis, world: AggregateWorld) -> Mapping[int, AggregateWorld]:
    """By the number of events in a slot from which on it has a tile."""
    with pytest.MonkeyPatch.context() as patch:
        found = {16: world}
        for least in (1, 3):
            patch.setattr(aggregate_layout, "LEAST_EVENTS_OF_A_TILE", least)
            found[least] = AggregateWorld(client, world.view)
        return found


@settings(max_examples=250, deadline=None)
@given(stories(), st.sampled_from([1, 3, 16]))
def test_any_story_of_pushes_and_reads_gives_the_shared_meaning(
    worlds: Mapping[int, AggregateWorld], story: list[Event | float], least: int
) -> None:
    """Reads go back as far as the lateness allowed from the newest event: no trimming shows there."""
    world = worlds[least]
    carrier = next(CARRIERS)
    taken: list[Event] = []
    newest_us = START
    for step in story:
        if isinstance(step, Event):
            taken.append(step)
            newest_us = max(newest_us, step.event_time_us)
            world.push(carrier, step)
            continue
        as_of_us = newest_us - round(step * SECOND)
        [row] = world.read([carrier], as_of_us)
        assert values(row) == wanted(world, taken, as_of_us)


@pytest.mark.parametrize("least", [1, 3, 16])
def test_busy_slots_give_the_shared_meaning_to_the_bit(worlds: Mapping[int, AggregateWorld], least: int) -> None:
    """Many events a slot, values whose sum is exact only if nothing is lost, windows that cut slots anywhere."""
    world = worlds[least]
    for seed in range(12):
        draw = random.Random(seed)
        wild = seed % 3
        carrier = next(CARRIERS)
        taken = [_busy_event(draw, number, wild) for number in range(draw.choice([25, 250]))]
        for each in taken:
            world.push(carrier, each)
        for _ in range(6):
            as_of_us = START + draw.randrange(24 * SECOND, 30 * SECOND)
            [row] = world.read([carrier], as_of_us)
            assert values(row) == wanted(world, taken, as_of_us)


@pytest.mark.parametrize(
    ("delays", "fits"),
    [
        ([round(random.Random(number).gauss(8, 40), 1) for number in range(300)], True),
        ([10.0**exponent for exponent in range(-300, 301, 30)], False),
        ([1.7e308, 1.7e308, *[-1e300] * 20], False),
    ],
)
def test_a_busy_slot_is_read_from_its_tile_if_its_sum_fits_there(
    world: AggregateWorld, delays: Sequence[float], fits: bool
) -> None:
    carrier = next(CARRIERS)
    taken = [event(number, 1 + number / 1_000, delay=delay) for number, delay in enumerate(delays)]
    for each in taken:
        world.push(carrier, each)
    as_of_us = START + 20 * SECOND
    records, _, tiles = world.reply_without_last(carrier, as_of_us)
    assert (len(records) == 0, len(tiles) > 0) == (fits, fits)
    [row] = world.read([carrier], as_of_us)
    assert values(row) == wanted(world, taken, as_of_us)


def _busy_event(draw: random.Random, number: int, wild: int) -> Event:
    delay = draw.choice(
        [
            draw.gauss(0, 30),
            draw.uniform(-1, 1) * 10.0 ** draw.randint(-9 * wild**5, 8 * wild**5),
            1.7e308 * (wild == 2),
        ]
    )
    seats = draw.choice([draw.randrange(-300, 300), draw.randrange(-(2**40), 2**40), -(2**31), 2**32 + 5])
    carried = {"delay": delay, "seats": seats, "late": draw.random() < 0.5, "gate": f"A{number}", "tail": f"N{seats}"}
    return event(number, draw.randrange(30_000) / 1_000, draw.choice([0, 0, 0.5, 3]), **carried)


def values(row: Mapping[str, tuple[AggregateValue, int, int]]) -> Mapping[str, AggregateValue]:
    return {name: value for name, (value, _, _) in row.items()}


def wanted(world: AggregateWorld, taken: Sequence[Event], as_of_us: int) -> Mapping[str, AggregateValue]:
    return {name: _as_read(value) for name, value in world.wanted(taken, as_of_us).items()}


def _as_read(value: AggregateValue) -> AggregateValue:
    """What is missing has no times, though a sum too large has events."""
    return value if value.value is not None else AggregateValue(None)


def test_an_event_counts_once_however_many_push_it_at_once(world: AggregateWorld, server: RedisProcess) -> None:
    events = [event(number, number / 100, delay=0.1 * number, gate=f"A{number}") for number in range(200)]
    carrier = next(CARRIERS)

    def push_all(seed: int) -> list[Outcome]:
        with Redis(unix_socket_path=server.socket) as own:
            mine = AggregateWorld(own, world.view)
            return [mine.push(carrier, each) for each in random.Random(seed).sample(events, len(events))]

    with ThreadPoolExecutor(4) as pool:
        outcomes = [outcome for result in pool.map(push_all, range(4)) for outcome in result]
    assert outcomes.count(Outcome.WRITTEN) == 200
    assert outcomes.count(Outcome.DUPLICATE) == 600
    as_of_us = START + 2 * SECOND
    [row] = world.read([carrier], as_of_us)
    assert values(row) == wanted(world, events, as_of_us)


def test_the_first_taken_of_an_id_stays_and_other_content_is_a_duplicate(world: AggregateWorld) -> None:
    carrier = next(CARRIERS)
    first = event(1, 10, delay=5.0)
    assert world.push(carrier, first) is Outcome.WRITTEN
    assert world.push(carrier, replace(event(1, 12, delay=9.0))) is Outcome.DUPLICATE
    [row] = world.read([carrier], START + 12 * SECOND)
    assert row["SUM_delay_0"][0] == AggregateValue(5.0, START + 10 * SECOND, START + 10 * SECOND)
    assert world.push(next(CARRIERS), first) is Outcome.WRITTEN, "another entity has its own events"


def test_late_events_and_those_too_old_to_be_held_do_not_reach_the_store(world: AggregateWorld) -> None:
    carrier = next(CARRIERS)
    assert world.push(carrier, event(1, 0, 7)) is Outcome.LATE
    assert world.push(carrier, event(2, 200)) is Outcome.WRITTEN
    assert world.push(carrier, event(3, 100)) is Outcome.OLDER
    assert world.push(carrier, event(4, 180)) is Outcome.WRITTEN
    [row] = world.read([carrier], START + 200 * SECOND)
    assert row["COUNT__1"][0].value == 1


def test_memory_is_bounded_by_what_windows_need(world: AggregateWorld, client: Redis) -> None:
    carrier = next(CARRIERS)
    sizes = []
    for number in range(1_500):
        world.push(carrier, event(number, number, delay=1.0, gate="A1"))
        if number % 300 == 299:
            [key] = client.keys(f"*:{carrier}~*")
            sizes.append((client.memory_usage(key, samples=0) or 0, client.hlen(key)))
    assert max(size for size, _ in sizes) <= 1.5 * sizes[0][0]
    assert max(fields for _, fields in sizes) <= 1.2 * sizes[0][1]
    assert 60_000 < client.pttl(key) <= 90_000, "and an entity without events goes"


def test_a_future_event_pushes_nothing_out_that_counts_now(world: AggregateWorld) -> None:
    carrier = next(CARRIERS)
    world.push(carrier, event(1, 0))
    assert world.push(carrier, event(2, 500, -500)) is Outcome.WRITTEN
    [row] = world.read([carrier], START + SECOND)
    assert row["COUNT__1"][0].value == 1


def test_a_restart_forgets_neither_events_nor_their_ids(world: AggregateWorld, server: RedisProcess) -> None:
    carrier = next(CARRIERS)
    events = [event(number, number / 10, delay=1.0, gate="A") for number in range(20)]
    for each in events:
        world.push(carrier, each)
    server.stop()
    server.start()
    assert {world.push(carrier, each) for each in events} == {Outcome.DUPLICATE}
    [row] = world.read([carrier], START + 2 * SECOND)
    assert row["COUNT__1"][0].value == 20


def test_another_aggregate_finds_the_events_and_two_definitions_at_once_disturb_no_answer(client: Redis) -> None:
    """While a definition changes, one process may write by the old one and another by the new one."""
    view = aggregate_view(timedelta(seconds=5), timedelta(seconds=20), lateness=timedelta(seconds=6))
    source = view.definition.source
    assert isinstance(source, AggregateSource)
    fewer = [each for each in source.aggregates if each.field in ("", "seats")]
    features = {each.feature: view.features[each.feature] for each in fewer}
    older = replace(
        view, features=features, definition=replace(view.definition, source=replace(source, aggregates=tuple(fewer)))
    )
    worlds = AggregateWorld(client, view), AggregateWorld(client, older)
    draw = random.Random(3)
    carrier = next(CARRIERS)
    taken = [_busy_event(draw, number, 0) for number in range(600)]
    for each in taken:
        draw.choice(worlds).push(carrier, each)
    for world in worlds:
        [row] = world.read([carrier], START + 30 * SECOND)
        assert values(row) == wanted(world, taken, START + 30 * SECOND)


def test_status_age_and_default_of_what_is_there_stale_or_empty(client: Redis) -> None:
    view = aggregate_view(timedelta(minutes=10), lateness=timedelta(minutes=1))
    stale = {name: replace(feature, max_age_us=30 * SECOND) for name, feature in view.features.items()}
    world = AggregateWorld(client, replace(view, features=stale))
    carrier = next(CARRIERS)
    world.push(carrier, event(1, 0, 2, delay=1.0))
    fresh = world.read([carrier, carrier], START + 30 * SECOND)
    assert fresh[0] == fresh[1]
    assert fresh[0]["MEAN_delay_0"] == (AggregateValue(1.0, START, START + 2 * SECOND), Status.PRESENT, 30_000)
    [old, empty] = world.read([carrier, next(CARRIERS)], START + 31 * SECOND)
    assert old["MEAN_delay_0"][1:] == (Status.STALE, 31_000)
    assert empty["SUM_delay_0"] == (AggregateValue(0.0), Status.PRESENT, 0)
    assert empty["MEAN_delay_0"] == (AggregateValue(None), Status.MISSING, -1)
    assert empty["LAST_N_gate_0"] == (AggregateValue(None), Status.MISSING, -1)
