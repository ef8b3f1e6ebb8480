"""Joins ten million rows of history to one million rows of labels, on one thread, and measures time and memory.

    python -m benchmarks.point_in_time_join [--history 10000000] [--labels 1000000] [--memory-mib 2048]

Writes benchmarks/results/point_in_time_join.md. Each figure is of a process of its own; memory is its largest resident
set, read by the kernel.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from services.features.adapters.batch_reader import BatchReader
from services.features.adapters.engine_limits import EngineLimits
from services.features.adapters.join_engine import JoinEngine, open_engine
from services.features.domain.definitions import Aggregate, AggregateFunction, EventField, FeatureType
from services.features.domain.point_in_time import (
    AggregateView,
    Clock,
    HistoryFiles,
    JoinPlan,
    PlannedFeature,
    PlannedKey,
    ValueView,
)

ROOT = Path(__file__).parent.parent

SECOND = 1_000_000
START = 1_700_000_000 * SECOND
SPAN = 30 * 86_400 * SECOND
ENTITIES = 200_000
ROWS_A_FILE = 1_000_000


def make_files(folder: Path, history: int, labels: int) -> None:
    """Write history (parts of a million rows, out of order, a tenth known late) and labels, the same for the same sizes."""
    random = np.random.default_rng(7)
    stamp = pa.timestamp("us", "UTC")
    for number, begin in enumerate(range(0, history, ROWS_A_FILE)):
        count = min(ROWS_A_FILE, history - begin)
        event = START + random.integers(0, SPAN, count)
        late = np.where(random.random(count) < 0.1, random.integers(0, 86_400 * SECOND, count), SECOND)
        entity = random.integers(0, ENTITIES, count)
        table = pa.table(
            {
                "entity__customer": pa.array(entity.astype(str)),
                "amount": pa.array(random.normal(50, 20, count)),
                "visits": pa.array(random.integers(0, 100, count)),
                "segment": pa.array(np.array(["a", "b", "c"])[random.integers(0, 3, count)]),
                "event_time": pa.array(event, stamp),
                "known_at": pa.array(event + late, stamp),
                "event_id": pa.array([f"{begin + index}" for index in range(count)]),
                "absent": pa.array([[]] * count, pa.list_(pa.string())),
            }
        )
        pq.write_table(table, folder / f"part-{number}.parquet")
    table = pa.table(
        {
            "customer": pa.array(random.integers(0, ENTITIES, labels).astype(str)),
            "time": pa.array(START + random.integers(0, SPAN, labels), stamp),
            "label": pa.array(random.integers(0, 2, labels)),
        }
    )
    with pa.OSFile(str(folder / "labels.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=65_536)


def run_case(folder: Path, case: str, memory_mib: int) -> dict[str, float]:
    """Join once in this process and return what it took."""

    parts = tuple(sorted(map(str, folder.glob("part-*.parquet"))))
    begin = time.perf_counter()
    with open_engine(EngineLimits(str(folder / "spill"), memory_mib=memory_mib, threads=1)) as database:
        engine = JoinEngine(database, plan_of(case), {"spending": HistoryFiles(parts)}, BatchReader({}))
        with pa.memory_map(str(folder / "labels.arrow")) as file:
            engine.load_rows(iter(pa.ipc.open_stream(file)))
        with pa.memory_map(str(folder / "labels.arrow")) as file:
            stream = pa.ipc.open_stream(file)
            count = sum(len(piece) for piece in engine.join(iter(stream), lambda _done: None))
    return {
        "rows": count,
        "found": sum(engine.present_counts.values()),
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time(),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def plan_of(case: str) -> JoinPlan:
    """Return what is joined."""
    keys = (PlannedKey("customer", FeatureType.STRING, "customer"),)
    if case == "aggregates":
        week = timedelta(days=7)
        aggregates = (
            Aggregate(feature="count", function=AggregateFunction.COUNT, window=week),
            Aggregate(feature="mean", function=AggregateFunction.MEAN, field="amount", window=week),
            Aggregate(feature="largest", function=AggregateFunction.MAXIMUM, field="amount", window=week),
        )
        planned = tuple(PlannedFeature(each.feature, FeatureType.DOUBLE, each.feature) for each in aggregates)
        fields = (EventField("amount", FeatureType.DOUBLE),)
        return JoinPlan("time", (AggregateView("spending", keys, planned, fields, aggregates, 86_400 * SECOND),))
    features = (
        PlannedFeature("amount", FeatureType.DOUBLE, "amount"),
        PlannedFeature("visits", FeatureType.INT64, "visits"),
        PlannedFeature("segment", FeatureType.STRING, "segment"),
    )
    clock = Clock.EVENT_TIME if case == "event time" else Clock.BOTH
    return JoinPlan("time", (ValueView("spending", keys, features),), clock=clock)


WINDOW_SQL = """
    SELECT row, amount, visits, segment FROM (
      SELECT row,
        arg_max(amount, clock) OVER seen AS amount,
        arg_max(visits, clock) OVER seen AS visits,
        arg_max(segment, clock) OVER seen AS segment
      FROM (
        SELECT entity__customer AS key, epoch_us(greatest(event_time, known_at)) AS moment, 0 AS kind, NULL AS row, amount, visits, segment,
          epoch_us(event_time)::HUGEINT * 9223372036854775808 + epoch_us(known_at) AS clock
        FROM read_parquet('{parts}')
        UNION ALL
        SELECT customer, epoch_us(time), 1, row_number() OVER (), NULL, NULL, NULL, NULL FROM labels
      )
      WINDOW seen AS (PARTITION BY key ORDER BY moment, kind ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
    ) WHERE row IS NOT NULL"""


def run_window(folder: Path, memory_mib: int) -> dict[str, float]:
    """Join once with one window over labels and history: the other way to write it, for comparison."""

    begin = time.perf_counter()
    with open_engine(EngineLimits(str(folder / "spill"), memory_mib=memory_mib, threads=1)) as database:
        with pa.memory_map(str(folder / "labels.arrow")) as file:
            database.register("labels", pa.ipc.open_stream(file).read_all())
        query = WINDOW_SQL.format(parts=folder / "part-*.parquet")
        pieces = database.sql(query).to_arrow_reader(65_536)
        rows = found = 0
        for piece in pieces:
            rows += len(piece)
            found += sum(len(piece) - piece.column(name).null_count for name in ("amount", "visits", "segment"))
    return {
        "rows": rows,
        "found": found,
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time(),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


FORM_ROWS = """
    CREATE OR REPLACE TABLE history AS SELECT (hash(i) % 20000)::VARCHAR AS key, event, event + delay AS known, {values} FROM (
      SELECT i, (hash(i + 7) % 2592000000000)::BIGINT AS event, (hash(i + 9) % 7200000000)::BIGINT AS delay
      FROM range(1000000) rows(i));
    CREATE OR REPLACE TABLE labels AS SELECT i AS row, (hash(i * 3) % 20000)::VARCHAR AS key,
      (hash(i + 77) % 2592000000000)::BIGINT AS moment FROM range(100000) rows(i)"""
CLOCK = "event::HUGEINT * 9223372036854775808 + known AS clock"
FORM_ASOF = f"""
    CREATE OR REPLACE TABLE steps AS SELECT key, seen, {{names}} FROM (
      SELECT *, max(clock) OVER (PARTITION BY key ORDER BY seen) AS best
      FROM (SELECT key, {{names}}, greatest(event, known) AS seen, {CLOCK} FROM history)) WHERE clock = best;
    CREATE OR REPLACE TABLE result AS SELECT row, {{names}}
      FROM labels ASOF LEFT JOIN steps ON labels.key = steps.key AND moment >= seen"""
FORM_WINDOW = f"""
    CREATE OR REPLACE TABLE result AS SELECT row, {{names}} FROM (SELECT row, {{newest}} FROM (
      SELECT key, greatest(event, known) AS moment, 0 AS kind, NULL AS row, {{names}}, {CLOCK} FROM history
      UNION ALL SELECT key, moment, 1, row, {{nulls}}, NULL FROM labels)
    WINDOW seen AS (PARTITION BY key ORDER BY moment, kind ROWS UNBOUNDED PRECEDING)) WHERE row IS NOT NULL"""


def compare_forms(feature_count: int) -> str:
    """Time both forms with nothing around them: a million rows of history, a hundred thousand labels."""
    names = [f"f{number}" for number in range(feature_count)]
    texts = {
        "names": ", ".join(names),
        "nulls": ", ".join("NULL" for _ in names),
        "newest": ", ".join(f"arg_max({name}, clock) OVER seen AS {name}" for name in names),
        "values": ", ".join(f"random() AS {name}" for name in names),
    }
    with tempfile.TemporaryDirectory(prefix="il-") as folder, open_engine(EngineLimits(folder)) as database:
        database.execute(FORM_ROWS.format(**texts))
        took = []
        for form in (FORM_ASOF, FORM_WINDOW):
            begin = time.process_time()
            database.execute(form.format(**texts))
            took.append(time.process_time() - begin)
    return f"| {feature_count} | {took[0]:.1f} | {took[1]:.1f} |"


CASES = {
    "values": "three features, both clocks (ASOF JOIN on the staircase)",
    "window": "the same values as one window over labels and history, straight from the files and nothing else",
    "event time": "three features, event time only",
    "aggregates": "count, mean and largest of 7 days, both clocks",
}


def main() -> None:
    """Run each case in a process of its own and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--history", type=int, default=10_000_000)
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--memory-mib", type=int, default=2048)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.case:
        run = run_window if options.case == "window" else lambda *args: run_case(args[0], options.case, args[1])
        print(json.dumps(run(options.folder, options.memory_mib)))
        return
    lines = []
    with tempfile.TemporaryDirectory(prefix="il-") as name:
        make_files(Path(name), options.history, options.labels)
        for case, title in CASES.items():
            command = [
                sys.executable,
                __file__,
                "--case",
                case,
                "--folder",
                name,
                "--memory-mib",
                str(options.memory_mib),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
            if done.returncode:
                why = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
                lines.append(f"| {title} | failed: {why[:80]} | | | |")
            else:
                found = json.loads(done.stdout)
                lines.append(
                    f"| {title} | {found['cpu_seconds']:.0f} | {found['seconds']:.0f} | {found['peak_mib'] / 1024:.2f} "
                    f"| {found['found']:,} |"
                )
            print(lines[-1], flush=True)
    lines += [
        "",
        "The two forms with nothing around them (no files, no features that a row does not carry, no equal times, no maximum",
        "age), a million rows of history and a hundred thousand labels, processor seconds:",
        "",
        "| features | staircase and ASOF JOIN | one window |",
        "|---|---|---|",
        *map(compare_forms, (3, 30)),
    ]
    write_table(options, lines)


def write_table(options: argparse.Namespace, lines: list[str]) -> None:
    """Write the result beside the others."""
    head = [
        "# Point-in-time join",
        "",
        f"{options.history:,} rows of history ({ENTITIES:,} entities over 30 days, a tenth known up to a day late) joined to",
        f"{options.labels:,} rows of labels. One thread; DuckDB may use {options.memory_mib:,} MiB and spills the rest to disk.",
        "Processor time is what the work costs; the clock also shows what else the machine was doing.",
        f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}. `python -m benchmarks.point_in_time_join`",
        "",
        "| join | processor, s | clock, s | peak memory, GiB | values found |",
        "|---|---|---|---|---|",
    ]
    path = ROOT / "benchmarks" / "results" / "point_in_time_join.md"
    path.write_text("\n".join([*head, *lines, ""]))


if __name__ == "__main__":
    main()
