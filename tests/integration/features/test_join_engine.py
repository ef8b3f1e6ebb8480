"""The join engine against a brute-force oracle: row by row the same, whatever the history."""

import gc
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common.errors import InvalidArgument
from services.features.adapters.batch_reader import BatchReader
from services.features.adapters.engine_limits import EngineLimits
from services.features.adapters.join_engine import JoinEngine, open_engine
from services.features.domain.aggregates import Event, compute_aggregate, events_in_time
from services.features.domain.definitions import Aggregate, AggregateFunction, EventField, FeatureType
from services.features.domain.failure import SourceUnreadable
from services.features.domain.point_in_time import (
    AggregateView,
    Clock,
    HistoryFiles,
    JoinPlan,
    PlannedFeature,
    PlannedKey,
    ValueView,
)

START = 1_700_000_000_000_000
STAMP = pa.timestamp("us", "UTC")
KEYS = (PlannedKey("carrier", FeatureType.STRING, "carrier"), PlannedKey("plane", FeatureType.INT64, "tail"))
MAX_AGE_US = 6
VALUES = ValueView(
    "v",
    KEYS,
    (
        PlannedFeature("delay", FeatureType.DOUBLE, "v__delay", nullable=False, max_age_us=MAX_AGE_US),
        PlannedFeature("gate", FeatureType.STRING, "v__gate"),
        PlannedFeature("seats", FeatureType.INT64, "v__seats", is_list=True),
    ),
)
AGGREGATES = tuple(
    Aggregate(feature=name, function=function, field=field, window=timedelta(microseconds=window), last_count=last)
    for name, function, field, window, last in (
        ("count", AggregateFunction.COUNT, "", 7, 0),
        ("total", AggregateFunction.SUM, "delay", 7, 0),
        ("whole", AggregateFunction.SUM, "bags", 12, 0),
        ("mean", AggregateFunction.MEAN, "delay", 12, 0),
        ("least", AggregateFunction.MINIMUM, "delay", 12, 0),
        ("greatest", AggregateFunction.MAXIMUM, "gate", 7, 0),
        ("newest", AggregateFunction.LAST_N, "delay", 12, 3),
    )
)
TYPES = {"count": FeatureType.INT64, "whole": FeatureType.INT64, "greatest": FeatureType.STRING}
LATENESS_US = 5
EVENTS = AggregateView(
    "a",
    KEYS,
    tuple(
        PlannedFeature(
            each.feature, TYPES.get(each.feature, FeatureType.DOUBLE), f"a__{each.feature}", each.last_count > 0
        )
        for each in AGGREGATES
    ),
    (
        EventField("delay", FeatureType.DOUBLE),
        EventField("bags", FeatureType.INT64),
        EventField("gate", FeatureType.STRING),
    ),
    AGGREGATES,
    LATENESS_US,
)
Row = Mapping[str, Any]


@pytest.fixture(autouse=True)
def _without_collection() -> Iterator[None]:
    """A quarter of the time here would go into looking for cycles among millions of rows that have none."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def joined(folder: Path, plan: JoinPlan, histories: Mapping[str, HistoryFiles], rows: pa.Table) -> pa.Table:
    with open_engine(EngineLimits(str(folder), memory_mib=512)) as db:
        engine = JoinEngine(db, plan, histories, BatchReader({}))
        engine.load_rows(iter(rows.to_batches(max_chunksize=50_000)))
        pieces = list(engine.join(iter(rows.to_batches(max_chunksize=70_000)), lambda _done: None))
    return pa.Table.from_batches(pieces)


def join(folder: Path, plan: JoinPlan, histories: Mapping[str, HistoryFiles], rows: pa.Table) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = joined(folder, plan, histories, rows).to_pylist()
    return found


def history_of(folder: Path, history: Sequence[Row], schema: pa.Schema, *, without: str) -> HistoryFiles:
    """Write rows as the history keeps them: a third in a part from before the feature `without`, the rest in another
    part and the tail.
    """
    third = len(history) // 3
    old = [row for row in history[:third] if without in row["absent"]]
    new = [row for row in history[:third] if without not in row["absent"]] + [*history[third : 2 * third]]
    forgotten = [{**row, "absent": [name for name in row["absent"] if name != without]} for row in old]
    pq.write_table(pa.Table.from_pylist(forgotten, schema).drop_columns([without]), folder / "old.parquet")
    pq.write_table(pa.Table.from_pylist(new, schema), folder / "new.parquet")
    tail = pa.Table.from_pylist(history[2 * third :], schema)
    with pa.OSFile(str(folder / "tail.arrow"), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        writer.write_table(tail)
    parts = (f"file://{folder / 'old.parquet'}", str(folder / "new.parquet"))
    return HistoryFiles(parts, str(folder / "tail.arrow"))


VALUE_SCHEMA = pa.schema(
    [
        ("entity__carrier", pa.string()),
        ("entity__plane", pa.string()),
        ("delay", pa.float64()),
        ("gate", pa.string()),
        ("seats", pa.list_(pa.int64())),
        ("event_time", STAMP),
        ("known_at", STAMP),
        ("event_id", pa.string()),
        ("absent", pa.list_(pa.string())),
    ]
)
EVENT_SCHEMA = VALUE_SCHEMA.remove(4).append(pa.field("bags", pa.int64()))


def a_row(key: tuple[str, int], event: int, known: int, values: Row, event_id: str = "") -> dict[str, Any]:
    return {
        "entity__carrier": key[0],
        "entity__plane": str(key[1]),
        **values,
        "event_time": START + event,
        "known_at": START + known,
        "event_id": event_id,
        "absent": [name for name in ("delay", "gate", "seats") if name not in values],
    }


def labels_of(labels: Sequence[tuple[tuple[str, int], int]]) -> pa.Table:
    return pa.table(
        {
            "carrier": pa.array([key[0] for key, _ in labels]).dictionary_encode(),
            "tail": pa.array([key[1] for key, _ in labels], pa.int32()),
            "at": pa.array([(START + at) * 1000 for _, at in labels], pa.timestamp("ns", "America/New_York")),
            "number": range(len(labels)),
        }
    )


def values_as_of(history: Sequence[Row], at: int, clock: Clock) -> dict[str, Any]:
    """The rule itself, in the plainest form."""
    seen = [
        row
        for row in history
        if row["event_time"] <= START + at and (clock is Clock.EVENT_TIME or row["known_at"] <= START + at)
    ]
    found: dict[str, Any] = {}
    for name in ("delay", "gate", "seats"):
        having = [row for row in seen if name not in row["absent"]]
        best = max(having, key=lambda row: _newest(row, name), default=None)
        too_old = best is not None and name == "delay" and START + at - best["event_time"] > MAX_AGE_US
        found[f"v__{name}"] = None if best is None or too_old else best[name]
    return found


def _newest(row: Row, name: str) -> tuple[Any, ...]:
    """Of values equal in both times the greater one, null being the least."""
    value = row[name]
    return (row["event_time"], row["known_at"], *(() if value is None else (value,)))


def random_values(draw: Callable[[], float]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if draw() < 0.8:
        values["delay"] = int(draw() * 40) / 4 - 5
    if draw() < 0.8:
        values["gate"] = GATES[int(draw() * 4)]
    if draw() < 0.5:
        values["seats"] = [int(draw() * 3) for _ in range(int(draw() * 3))]
    return values


GATES = ("A1", "B", None, "B")
DELAYS = (0, 0, 1, 1, 3, 9, -2)


@pytest.mark.parametrize(("clock", "count"), [(Clock.BOTH, 65_000), (Clock.EVENT_TIME, 35_000)])
def test_values_are_those_of_the_rule_over_a_hundred_thousand_histories(
    tmp_path: Path, clock: Clock, count: int
) -> None:
    """Late, early known, duplicate and out-of-order rows, ties in both times, features that rows do not carry."""
    rng = random.Random(f"histories-{clock}")
    draw = rng.random
    keys = [(f"c{number % 700}", number - 500) for number in range(count)]
    history: list[dict[str, Any]] = []
    for key in keys:
        for _ in range(int(draw() * 7)):
            event = int(draw() * 20)
            row = a_row(key, event, event + DELAYS[int(draw() * 7)], random_values(draw))
            history.append(row)
            if draw() < 0.15:
                history.append({**row, "known_at": row["known_at"] + int(draw() * 3)})
    rng.shuffle(history)
    labels = [(key, int(draw() * 26) - 1) for key in keys]
    labels += [(keys[int(draw() * count)], int(draw() * 26) - 1) for _ in range(count // 4)] + [(("none", 1), 5)]
    rng.shuffle(labels)
    files = history_of(tmp_path, history, VALUE_SCHEMA, without="seats")
    found = joined(tmp_path, JoinPlan("at", (VALUES,), clock=clock), {"v": files}, labels_of(labels))
    by_key = defaultdict(list)
    for row in history:
        by_key[row["entity__carrier"], int(row["entity__plane"])].append(row)
    assert found.column("number").to_pylist() == list(range(len(labels)))
    got = zip(*(found.column(name).to_pylist() for name in ("v__delay", "v__gate", "v__seats")), strict=True)
    for values, (key, at) in zip(got, labels, strict=True):
        want = values_as_of(by_key[key], at, clock)
        assert values == (want["v__delay"], want["v__gate"], want["v__seats"]), (key, at, by_key[key])


def aggregates_as_of(history: Sequence[Row], at: int, clock: Clock) -> tuple[Any, ...]:
    """The rule itself, in the plainest form: what AGGREGATES hold, in their order."""
    taken: dict[str, Row] = {}
    for row in history:
        first = taken.get(row["event_id"])
        in_time = row["known_at"] - row["event_time"] <= LATENESS_US
        if in_time and (first is None or row["known_at"] < first["known_at"]):
            taken[row["event_id"]] = row
    seen = [
        row
        for row in taken.values()
        if START + at - 12 < row["event_time"] <= START + at
        and (clock is Clock.EVENT_TIME or row["known_at"] <= START + at)
    ]
    seen.sort(key=lambda row: (row["event_time"], row["known_at"], sha256(row["event_id"].encode()).digest()))
    recent = [row for row in seen if row["event_time"] > START + at - 7]
    delays = [row["delay"] for row in seen if row["delay"] is not None]
    bags = [row["bags"] for row in seen if row["bags"] is not None]
    gates = [row["gate"] for row in recent if row["gate"] is not None]
    return (
        len(recent),
        sum(row["delay"] for row in recent if row["delay"] is not None),
        sum(bags),
        sum(delays) / len(delays) if delays else None,
        min(delays, default=None),
        max(gates, default=None),
        delays[:-4:-1] or None,
    )


@pytest.mark.parametrize(("clock", "count"), [(Clock.BOTH, 65_000), (Clock.EVENT_TIME, 35_000)])
def test_aggregates_are_those_of_the_rule_over_a_hundred_thousand_histories(
    tmp_path: Path, clock: Clock, count: int
) -> None:
    """Late, early known and out-of-order events, some too late to count; some sent again with other content."""
    rng = random.Random(f"events-{clock}")
    draw = rng.random
    keys = [(f"c{number % 700}", number - 500) for number in range(count)]
    history: list[dict[str, Any]] = []
    for key in keys:
        for number in range(int(draw() * 5)):
            event = int(draw() * 20)
            # Multiples of a quarter: every sum of them is exact.
            row = a_row(key, event, event + EVENT_DELAYS[int(draw() * 7)], random_event(draw), f"{number}")
            history.append(row)
            if draw() < 0.2:
                history.append({**row, **random_event(draw), "known_at": row["known_at"] + 1 + int(draw() * 3)})
    rng.shuffle(history)
    labels = [(key, int(draw() * 36) - 1) for key in keys] + [(("none", 1), 5)]
    rng.shuffle(labels)
    files = history_of(tmp_path, history, EVENT_SCHEMA, without="gate")
    found = joined(tmp_path, JoinPlan("at", (EVENTS,), clock=clock), {"a": files}, labels_of(labels))
    by_key = defaultdict(list)
    for row in history:
        by_key[row["entity__carrier"], int(row["entity__plane"])].append(row)
    assert found.column("number").to_pylist() == list(range(len(labels)))
    got = zip(*(found.column(f"a__{each.feature}").to_pylist() for each in AGGREGATES), strict=True)
    for values, (key, at) in zip(got, labels, strict=True):
        assert values == aggregates_as_of(by_key[key], at, clock), (key, at, by_key[key])


EVENT_DELAYS = (0, 0, 1, 4, 5, 6, -2)


def random_event(draw: Callable[[], float]) -> dict[str, Any]:
    return {
        "delay": int(draw() * 40) / 4 - 5 if draw() < 0.8 else None,
        "bags": int(draw() * 4) if draw() < 0.8 else None,
        "gate": GATES[int(draw() * 4)],
        "absent": [],
    }


@st.composite
def event_stories(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[tuple[tuple[str, int], int]]]:
    """Events of three entities, each sent once or often, in any order, and later with other content."""
    rows = []
    keys = [("AA", 1), ("AA", 2), ("BB", -1)]
    for number in range(draw(st.integers(0, 30))):
        event = draw(st.integers(0, 20))
        values = draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "delay": st.floats(-1e6, 1e6),
                    "bags": st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9),
                    "gate": st.text(max_size=2),
                },
            )
        )
        key = draw(st.sampled_from(keys))
        for _ in range(draw(st.sampled_from([1, 1, 2]))):
            known = event + draw(st.sampled_from([0, 0, 1, 2, 4, 5, 6, -1]))
            rows.append({**a_row(key, event, known, values, f"id-{number // 2}"), "bags": values.get("bags")})
    times = draw(st.lists(st.tuples(st.sampled_from([*keys, ("CC", 1)]), st.integers(-1, 40)), min_size=1, max_size=20))
    return rows, times


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(event_stories(), st.sampled_from(Clock))
def test_aggregates_are_those_of_the_shared_meaning(
    tmp_path: Path, story: tuple[list[dict[str, Any]], list[tuple[tuple[str, int], int]]], clock: Clock
) -> None:
    """Rows of one moment of knowing are first taken in the order of event times, as the join has nothing else to go by."""
    rows, labels = story
    files = history_of(tmp_path, [{**row, "absent": []} for row in rows], EVENT_SCHEMA, without="gate")
    plan = JoinPlan("at", (EVENTS,), clock=clock, include_event_times=True)
    found = join(tmp_path, plan, {"a": files}, labels_of(labels))
    for row, (key, at) in zip(found, labels, strict=True):
        mine = [each for each in rows if (each["entity__carrier"], int(each["entity__plane"])) == key]
        mine.sort(key=lambda each: (each["known_at"], each["event_time"]))
        events = [Event(each["event_id"], each["event_time"], each["known_at"], each) for each in mine]
        counting = events_in_time(events, LATENESS_US)
        for aggregate in AGGREGATES:
            want = compute_aggregate(aggregate, counting, START + at, obey_known_at=clock is Clock.BOTH).value
            got = row[f"a__{aggregate.feature}"]
            if isinstance(want, float) and isinstance(got, float):
                assert got == pytest.approx(want, rel=1e-12, abs=1e-9), (aggregate, row, mine)
            else:
                assert got == (list(want) if isinstance(want, tuple) else want), (aggregate, row, mine)


def test_a_sum_after_a_long_history_of_large_numbers_is_exact(tmp_path: Path) -> None:
    rows = [
        {**a_row(("AA", 1), index, index, {"delay": value}, f"{index}"), "bags": None, "absent": []}
        for index, value in enumerate([1e16, 1.0, -3e15, 7e15, 0.1, 0.2, 0.3] * 3)
    ]
    total = AGGREGATES[1]
    view = replace(
        EVENTS, features=EVENTS.features[1:2], aggregates=(replace(total, window=timedelta(microseconds=3)),)
    )
    files = history_of(tmp_path, rows, EVENT_SCHEMA, without="gate")
    found = join(tmp_path, JoinPlan("at", (view,)), {"a": files}, labels_of([(("AA", 1), 20), (("AA", 1), 30)]))
    assert [row["a__total"] for row in found] == [0.6, 0.0]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"carrier": pa.array([1])}, "entity_columns"),
        ({"tail": pa.array(["1"])}, "entity_columns"),
        ({"at": pa.array([None], STAMP)}, "time_column"),
        ({"at": pa.array(["yesterday"])}, "time_column"),
        ({"at": pa.array([START], pa.timestamp("us"))}, "time_column"),
        ({"at": None}, "time_column"),
        ({"tail": None}, "entity_columns"),
        ({"v__gate": pa.array([1])}, "rows"),
    ],
)
def test_rows_that_cannot_be_joined_are_refused_by_field(
    tmp_path: Path, change: dict[str, pa.Array | None], field: str
) -> None:
    columns = dict(zip(*_columns(labels_of([(("AA", 1), 0)])), strict=True)) | change
    rows = pa.table({name: column for name, column in columns.items() if column is not None})
    with pytest.raises(InvalidArgument) as refused:
        join(tmp_path, JoinPlan("at", (VALUES,)), {}, rows)
    assert refused.value.violations[0].field.startswith(field)
    assert "want" in refused.value.violations[0].description


def _columns(table: pa.Table) -> tuple[list[str], list[pa.Array]]:
    return table.schema.names, table.columns


def test_a_broken_part_of_the_history_is_named(tmp_path: Path) -> None:
    good = history_of(tmp_path, [a_row(("AA", 1), 0, 0, {"delay": 1.0})] * 3, VALUE_SCHEMA, without="seats")
    content = bytearray((tmp_path / "new.parquet").read_bytes())
    content[4:200] = np.random.default_rng(1).bytes(196)
    (tmp_path / "new.parquet").write_bytes(content)
    (tmp_path / "cut.parquet").write_bytes(content[:-9])
    rows = labels_of([(("AA", 1), 0)])
    for parts in ((*good.parts,), (str(tmp_path / "cut.parquet"),), (str(tmp_path / "gone.parquet"),)):
        with pytest.raises(SourceUnreadable, match=Path(parts[-1]).name) as caught:
            join(tmp_path, JoinPlan("at", (VALUES,)), {"v": HistoryFiles(parts)}, rows)
        # Where the service keeps it is no business of callers.
        assert str(tmp_path) not in str(caught.value)
