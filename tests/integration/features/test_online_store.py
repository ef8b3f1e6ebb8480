"""The online store on real servers: one rule whatever the order, a Sentinel, and URLs."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from redis.exceptions import BusyLoadingError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from services.features.adapters.metrics import StoreMetrics
from services.features.adapters.online_writer import RedisOnlineWriter
from services.features.adapters.redis_link import InvalidRedisUrl, open_link
from services.features.adapters.redis_store import RedisStore
from services.features.domain.catalog import CompiledView, compile_view
from services.features.domain.definitions import Entity, Feature, FeatureType, FeatureView, PushSource, Value
from services.features.domain.failure import OnlineStoreUnavailable
from services.features.domain.plain_view import PlainReader, PlainWriter
from services.features.domain.ports import Column, Outcome, ReadRow, Reply, Request, Row
from services.features.domain.push import now_us
from services.features.domain.wire import decode
from tests.fakes.redis_server import redis_sentinel, redis_server

TYPES: Mapping[str, tuple[FeatureType, bool]] = {
    "number": (FeatureType.DOUBLE, False),
    "whole": (FeatureType.INT64, False),
    "text": (FeatureType.STRING, False),
    "truth": (FeatureType.BOOL, False),
    "wholes": (FeatureType.INT64, True),
}
WHOLE = st.sampled_from([-(2**63), -300, -1, 0, 1, 127, 128, 2**53 + 1, 2**63 - 1])
VALUES: Mapping[str, st.SearchStrategy[Value]] = {
    "number": st.none() | st.sampled_from([-1e300, -1.5, 0.0, 2.5, 1e300]),
    "whole": st.none() | WHOLE,
    "text": st.none() | st.text("abé\x00", max_size=3),
    "truth": st.none() | st.booleans(),
    "wholes": st.none() | st.lists(WHOLE, max_size=3).map(tuple),
}
ROWS = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.integers(1, 3),
        st.sets(st.sampled_from(sorted(TYPES)), min_size=1).flatmap(
            lambda names: st.fixed_dictionaries({name: VALUES[name] for name in sorted(names)})
        ),
    ),
    max_size=8,
)


def make_view(retention: timedelta | None = None) -> CompiledView:
    features = tuple(
        Feature(name=name, type=kind, is_list=is_list, nullable=True) for name, (kind, is_list) in TYPES.items()
    )
    definition = FeatureView(id="v", entities=("e",), features=features, source=PushSource(), retention=retention)
    return compile_view(definition, {"e": Entity(id="e", key_type=FeatureType.STRING)})


class Online:
    """One plain view on a store."""

    def __init__(self, store: RedisStore, view: CompiledView) -> None:
        self.store = store
        self._online = RedisOnlineWriter(store, now_us)
        self._writer = PlainWriter(view)
        self._reader = PlainReader(view, list(view.features.values()))

    async def write(self, *rows: Row) -> Sequence[Outcome]:
        return await self._online.write(self._writer, rows)

    async def read(self, *keys: str) -> Mapping[str, Column]:
        rows = [ReadRow({"e": key}) for key in keys]
        replies = await self.store.read(self._reader.ask(rows, now_us()))
        return dict(zip(self._reader.features, self._reader.answer(rows, replies, now_us()), strict=True))


@asynccontextmanager
async def online(url: str, on_reconnect: Callable[[], None] = lambda: None) -> AsyncIterator[Online]:
    link = open_link(url, connect_timeout_s=2, on_reconnect=on_reconnect)
    metrics = StoreMetrics(CollectorRegistry())
    store = RedisStore(link, read_deadline_s=2, write_deadline_s=5, metrics=metrics, on_back=lambda: None)
    try:
        yield Online(store, make_view())
    finally:
        await store.close()
        await link.close()


@contextmanager
def loop_with(server: Any) -> Iterator[tuple[asyncio.Runner, Any]]:
    """A loop that lives as long as the block, for tests that hypothesis calls many times, and what it opened."""
    with asyncio.Runner() as runner:
        opened = runner.run(server.__aenter__())
        try:
            yield runner, opened
        finally:
            runner.run(server.__aexit__(None, None, None))


def rank(value: Value) -> tuple[bool, Any]:
    """Of two values with both times equal the greater one stays, null being the least."""
    return (value is not None, value if not isinstance(value, str) else value.encode())


def test_any_order_of_pushes_leads_to_the_newest_value_of_each_feature() -> None:
    with loop_with(redis_server()) as (runner, server), loop_within(runner, online(server.url)) as store:
        keys = iter(range(10**9))

        @settings(max_examples=150, deadline=None)
        @given(ROWS, st.randoms(use_true_random=False))
        def check(made: list[tuple[int, int, dict[str, Value]]], order: random.Random) -> None:
            key = f"k{next(keys)}"
            rows = [Row((key,), values, event_us, known_us) for event_us, known_us, values in made]
            pushed = [*rows, *order.choices(rows, k=len(rows) // 2)] if rows else []
            order.shuffle(pushed)
            for start in range(0, len(pushed), 4):
                runner.run(store.write(*pushed[start : start + 4]))
            found = runner.run(store.read(key))
            for name, column in found.items():
                carried = [
                    (row.event_time_us, row.known_at_us, *rank(row.values[name])) for row in rows if name in row.values
                ]
                if not carried:
                    assert (column.statuses, column.event_times_us) == ([3], [0]), name
                    continue
                event_us, known_us, *best = max(carried)
                assert (column.event_times_us, column.known_ats_us) == ([event_us], [known_us]), name
                assert rank(decode(column.values[0])) == tuple(best), name

        check()


@contextmanager
def loop_within(runner: asyncio.Runner, opened: Any) -> Iterator[Any]:
    found = runner.run(opened.__aenter__())
    try:
        yield found
    finally:
        runner.run(opened.__aexit__(None, None, None))


async def test_a_row_says_whether_it_changed_something() -> None:
    async with redis_server() as server, online(server.url) as store:
        first = Row(("k",), {"number": 1.0, "text": "a"}, 10, 10)
        assert await store.write(first, first) == [Outcome.WRITTEN, Outcome.DUPLICATE]
        later_known = Row(("k",), {"number": 1.0}, 10, 20)
        assert await store.write(later_known) == [Outcome.DUPLICATE]
        assert (await store.read("k"))["number"].known_ats_us == [20]
        assert await store.write(Row(("k",), {"number": 2.0}, 9, 30)) == [Outcome.OLDER]
        assert await store.write(Row(("k",), {"number": 2.0, "whole": 1}, 9, 30)) == [Outcome.WRITTEN]
        assert await store.write(Row(("k",), {"number": 3.0}, 10, 15)) == [Outcome.OLDER]
        assert await store.write(Row(("k",), {"number": None}, 11, 1)) == [Outcome.WRITTEN]


async def test_a_sentinel_says_who_the_master_is() -> None:
    async with redis_server(port=True) as first, redis_server(port=True) as second:
        async with second.client() as client:
            await client.replicaof("127.0.0.1", first.port)
            while (await client.info("replication"))["master_link_status"] != "up":
                await asyncio.sleep(0.05)
        async with redis_sentinel(first) as port:
            lost: list[bool] = []
            async with online(f"redis+sentinel://127.0.0.1:{port}/flights/0", lambda: lost.append(True)) as store:
                assert await store.write(Row(("k",), {"whole": 1}, 10, 10)) == [Outcome.WRITTEN]
                async with second.client() as client:
                    while (await client.info("replication"))["slave_repl_offset"] == 0:
                        await asyncio.sleep(0.05)
                await first.kill()
                while True:
                    try:
                        if await store.write(Row(("k",), {"whole": 2}, 20, 20)) == [Outcome.WRITTEN]:
                            break
                    except OnlineStoreUnavailable:
                        await asyncio.sleep(0.1)
                assert decode((await store.read("k"))["whole"].values[0]) == 2
                async with second.client() as client:
                    assert (await client.info("replication"))["role"] == "master"


async def test_a_big_read_takes_several_round_trips_and_comes_out_in_order() -> None:
    async with redis_server() as server, online(server.url) as store:
        rows = [Row((f"k{number}",), {"whole": number}, 10, 10) for number in range(4000)]
        await store.write(*rows)
        found = await store.read(*[f"k{number}" for number in range(4000)])
        assert [decode(value) for value in found["whole"].values] == list(range(4000))
        assert [decode(value) for value in found["number"].values] == [None] * 4000


async def test_a_reader_that_leaves_disturbs_nobody() -> None:
    """Replies that nobody waits for must not become somebody else's: with the next test, in ten thousand."""
    async with redis_server() as server, online(server.url) as store:
        await store.write(*[Row((f"k{number}",), {"whole": number}, 10, 10) for number in range(50)])
        draw, stayed = random.Random(7), 0

        async def read(number: int) -> bool:
            try:
                async with asyncio.timeout(draw.choice([0, 0.001, 0.002, 0.005, 5])):
                    found = await store.read(f"k{number % 50}")
            except TimeoutError:
                return False
            assert decode(found["whole"].values[0]) == number % 50
            return True

        left = 0
        while left < 8_000:
            ended = await asyncio.gather(*[read(number) for number in range(200)])
            stayed, left = stayed + sum(ended), left + ended.count(False)
        assert stayed > 1_000


async def test_a_round_trip_that_is_given_up_leaves_no_reply_behind() -> None:
    async with redis_server() as server:
        async with server.client() as client:
            for number in range(50):
                await client.set(f"k{number}", number)
        link = open_link(server.url, connect_timeout_s=0.002, on_reconnect=lambda: None)
        draw, good, given_up = random.Random(7), 0, 0
        while good < 100 or given_up < 2_000:
            numbers = draw.sample(range(50), k=20)
            deadline_s = draw.choice([0.00002, 0.0003, 0.001, 2])
            try:
                replies = await link.exchange([(b"GET", b"k%d" % number) for number in numbers], deadline_s)
            except (TimeoutError, RedisError):
                given_up += 1
                continue
            assert replies == [b"%d" % number for number in numbers]
            good += 1
        await link.close()


class BrokenLink:
    """A way to a Redis that fails as a test says."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.asked: list[Sequence[Request]] = []

    async def exchange(self, requests: Sequence[Request], deadline_s: float) -> list[Reply]:
        self.asked.append(requests)
        if self.fault is not None:
            raise self.fault
        return [b"1" for _ in requests]

    async def scan(self, pattern: bytes, deadline_s: float) -> AsyncIterator[list[bytes]]:
        yield []

    async def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("fault", "reads", "why"),
    [
        (TimeoutError(), 2, "it takes too long"),
        (RedisConnectionError("reset"), 1, "the connection failed"),
        (BusyLoadingError("LOADING"), 1, "it is still loading"),
        (OSError("gone"), 1, "the connection failed"),
    ],
)
async def test_no_read_tries_a_redis_that_is_gone_and_none_is_needed_to_find_it_back(
    fault: Exception, reads: int, why: str
) -> None:
    link, back = BrokenLink(), asyncio.Event()
    metrics = StoreMetrics(CollectorRegistry())
    store = RedisStore(link, read_deadline_s=5, write_deadline_s=5, metrics=metrics, on_back=back.set)
    request = (b"GET", b"k")
    assert await store.read([request]) == [b"1"]
    assert not back.is_set()
    link.fault = fault
    for _ in range(reads):
        store.check()
        with pytest.raises(OnlineStoreUnavailable):
            await store.read([request])
    asked = sum(request in requests for requests in link.asked)
    for ask in (store.read, store.write):
        with pytest.raises(OnlineStoreUnavailable, match=why):
            await ask([request])
    with pytest.raises(OnlineStoreUnavailable):
        store.check()
    link.fault = None
    async with asyncio.timeout(10):
        await back.wait()
    assert sum(request in requests for requests in link.asked) == asked
    assert await store.read([request]) == [b"1"]
    await store.close()


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:secret@127.0.0.1:6379/1",
        "rediss://127.0.0.1:6379",
        "unix:///tmp/redis.sock?db=1",
        "redis+sentinel://user:secret@h1:26379,h2/flights/1?sentinel_password=secret",
        "rediss+sentinel://h1,h2:1/flights",
        "redis+cluster://user:secret@h1:7000,[::1]:7001",
        "rediss+cluster://h1",
    ],
)
async def test_every_form_of_url_is_understood(url: str) -> None:
    await open_link(url, connect_timeout_s=1, on_reconnect=lambda: None).close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:6379",
        "http://user:secret@h1",
        "redis+sentinel://secret@h1",
        "redis+cluster://:secret@,",
        "redis://h:x/",
    ],
)
def test_any_other_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidRedisUrl, match="want redis://") as caught:
        open_link(url, connect_timeout_s=1, on_reconnect=lambda: None)
    assert "secret" not in str(caught.value)
