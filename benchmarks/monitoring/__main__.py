"""The truth about the monitor's statistics: on public data beside other libraries, and on streams whose truth is known.

    python -m benchmarks.monitoring            writes benchmarks/results/monitoring.md

Installs NannyML and river into environments of their own (.venv-nannyml, .venv-river); takes about half an hour of one core.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.monitoring import (
    change_points,
    coverage,
    fresh_streams,
    held_out,
    label_delay,
    null_rates,
    public_sets,
    sketch_speed,
)
from benchmarks.monitoring.peers import ROOT, Peer, ask
from benchmarks.monitoring.stationary import run_stationary
from services.monitor.domain.interval import LEVEL, rate_interval
from services.monitor.domain.label_free import Stretch

RESULTS = ROOT / "benchmarks" / "results" / "monitoring.md"
Rows = Iterable[Iterable[object]]
STREAMS, POWER_STREAMS = 6, 30
CHANCE = 0.01
LABELS_LATER = (
    "Labels come so many chunks later; covered, where a level is stated (0.95), by intervals before → after they are widened by what past "
    "ones missed, and how wide they are then. Said: the coverage that answers state, with its interval, on average over the chunks that "
    "had any. No level stated: inputs drifted that no labels told of yet."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=1_000, help="windows of the stationary stream")
    windows = parser.parse_args().windows
    begin, lines = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="il-") as name:
        folder = Path(name)
        peer = ask("nannyml", folder)
        lines += public(folder, peer)
        lines += unseen(folder, peer)
        lines += series(ask("river", folder))
    lines += stationary(windows)
    lines += fresh()
    lines += intervals()
    lines += sketches()
    took = f"{(time.monotonic() - begin) / 60:.0f} min, {time.process_time() / 60:.0f} of them processor time"
    head = [
        "# Monitoring: what fires, when, and what fires falsely",
        "",
        f"`python -m benchmarks.monitoring`, {datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {took}.",
        "Defaults of the policy: false discovery rate 0.01, minimum effects PSI 0.1, Jensen-Shannon 0.1, KS 0.1.",
        "",
    ]
    RESULTS.write_text("\n".join([*head, *lines]).rstrip() + "\n")
    print(f"wrote {RESULTS}")


def public(folder: Path, peer: Peer) -> Iterator[str]:
    yield "## NannyML's sets, in chunks of 5,000"
    yield ""
    if peer.missing:
        yield f"NannyML could not be installed or run here, and its sets come with it: {peer.missing}"
        yield ""
        return
    yield (
        f"NannyML {peer.verdicts['version']}, defaults (thresholds: mean ± 3 standard deviations of the reference's chunks; chi-square: "
        "p < 0.05). Ours: baseline = first half of the reference, its second half and the analysis are windows that come "
        "one after the other. Numbers are chunks of the analysis, r = of the reference, where every alarm is false."
    )
    yield ""
    for name in ("car_loan", "census"):
        verdicts = peer.verdicts[name]
        yield f"### {name}: drift"
        yield ""
        rows = public_sets.drift_table(folder / f"{name}.parquet", verdicts["drift"])
        yield from table(
            ("feature", "largest JS", "ours fires in", "NannyML fires in (by method)"),
            ([row.feature, f"{row.largest:.3f}", _spans(row.ours), _methods(row.theirs)] for row in rows),
        )
        yield f"### {name}: quality without labels"
        yield ""
        yield (
            "Realised figure inside the interval, where a level is stated (95 %), and where none is, since inputs drifted that no labels "
            "tell of. Held out: labels of the first half of the reference only, held against its second half. Analysis: labels of the "
            "reference only, drift and all; NannyML's band is ± 3 standard errors, so it states more than 99 %, always. Mean error: of "
            "the estimates. The second table of each size: labels come later. " + LABELS_LATER
        )
        yield ""
        for size in (1_000, 5_000):
            chunks, first = public_sets.chunks_of(folder / f"{name}.parquet", size)
            yield from _coverage(chunks, first, size, verdicts["quality"][str(size)])
            found = {f"{delay} later": label_delay.follow(chunks, delay, first) for delay in (1, 2, 3)}
            yield from _followed(f"chunks of {size:,}", found)
            yield from _beyond_chance(found)


def unseen(folder: Path, peer: Peer) -> Iterator[str]:
    yield "## Quality without labels on sets that nothing was fitted to"
    yield ""
    yield (
        f"{LABELS_LATER} NannyML's modified housing; flights: "
        "late or not from the schedule alone, April to December after February and March; rotating: a plane that turns for 20,000 rows, "
        "stands still for 20,000 and turns again, which no input shows. Windows that are missing were refused: the classifier was no "
        "longer calibrated. One pair of constants, how much stretches usually differ, was looked at on flights and rotating before it was "
        "fixed: with 0.6 and 2 times as much coverage was the same within chance."
    )
    yield ""
    held_out.prepare(folder)
    followed: dict[str, list[label_delay.Followed]] = {}
    for name, sizes in held_out.SETS.items():
        path = folder / f"{name}.parquet"
        if not path.exists():
            yield f"{name} comes with NannyML: {peer.missing}"
            yield ""
            continue
        for size in sizes:
            chunks, first = public_sets.chunks_of(path, size)
            found = {f"{delay} later": label_delay.follow(chunks, delay, first) for delay in (1, 2, 3)}
            followed |= {f"{name}, {size:,}, {head}": rows for head, rows in found.items()}
            yield from _followed(f"{name}, chunks of {size:,}", found)
    yield from _beyond_chance(followed)


def _coverage(chunks: Sequence[Stretch], first: int, size: int, verdicts: dict[str, object]) -> Iterator[str]:
    held_out = public_sets.coverage_table(chunks[:first], first // 2, {})
    analysis = public_sets.coverage_table(chunks, first, verdicts)
    if isinstance(held_out, str) or isinstance(analysis, str):
        yield f"Refused (NOT_CALIBRATED): {held_out if isinstance(held_out, str) else analysis}"
        yield ""
        return
    before = {row.metric: row for row in held_out}
    yield from table(
        (
            f"chunks of {size:,}",
            "held out",
            "analysis",
            "width",
            "no level stated",
            "mean error",
            "NannyML: analysis",
            "width",
            "mean error",
        ),
        (
            [
                row.metric,
                _share_of(before[row.metric].covered, before[row.metric].stated),
                _share_of(row.covered, row.stated),
                _number(row.width, ".3f"),
                _share_of(row.unstated_covered, row.unstated),
                f"{row.error:.4f}",
                _number(row.their_covered, ".2f"),
                _number(row.their_width, ".3f"),
                _number(row.their_error, ".4f"),
            ]
            for row in analysis
        ),
    )


def _followed(head: str, found: dict[str, list[label_delay.Followed]]) -> Iterator[str]:
    """Coverage where a level is stated, before and after past misses; in rows of their own where none is."""
    by_metric = {name: {row.metric: row for row in rows} for name, rows in found.items()}
    metrics = sorted({metric for rows in by_metric.values() for metric in rows})
    rows = []
    for metric in metrics:
        of_metric = [row.get(metric) for row in by_metric.values()]
        rows.append([metric, *(_before_and_after(row.stated if row else []) for row in of_metric)])
        unstated = [row.unstated if row else [] for row in of_metric]
        if any(unstated):
            rows.append([f"{metric}, no level stated", *map(_without_level, unstated)])
    yield from table((head, *found), rows)


def _before_and_after(rows: Sequence[label_delay.Row]) -> str:
    if not rows:
        return ""
    plain, covered, width = (np.mean([getattr(row, name) for row in rows]) for name in ("plain", "covered", "width"))
    said = [row.said for row in rows if row.said is not None]
    estimate, lower, upper = np.mean(said, axis=0) if said else (np.nan, 0.0, 1.0)
    known = f"{estimate:.2f} ({lower:.2f} to {upper:.2f})" if said else "nothing"
    return f"{plain:.2f} → {covered:.2f} of {len(rows)}, width {width:.3f}, said {known}"


def _without_level(rows: Sequence[label_delay.Row]) -> str:
    return _share_of(float(np.mean([row.covered for row in rows])) if rows else np.nan, len(rows))


def _beyond_chance(found: dict[str, list[label_delay.Followed]]) -> Iterator[str]:
    """Name the figures whose intervals cover less often than stated, by more than chance explains."""
    counts = {
        f"{row.metric} ({head})": (sum(one.covered for one in row.stated), len(row.stated))
        for head, rows in found.items()
        for row in rows
        if row.stated
    }
    below = [name for name, (held, count) in counts.items() if stats.binom.cdf(held, count, LEVEL) < CHANCE]
    covered, total = (sum(column) for column in zip(*counts.values(), strict=True)) if counts else (0, 0)
    yield (
        f"Where a level is stated, {covered:,} of {total:,} intervals hold their figure ({covered / max(total, 1):.3f}). Of {len(counts)} "
        f"figures {len(below)} cover less often than stated beyond chance (binomial, p < {CHANCE})"
        f"{': ' if below else ''}{'; '.join(below)}."
    )
    yield ""


def _share_of(share: float, count: int) -> str:
    return f"{share:.2f} of {count}" if count else ""


def series(peer: Peer) -> Iterator[str]:
    yield "## Annotated change points (river's copy of the Turing set)"
    yield ""
    if peer.missing:
        yield f"river could not be installed or run here, and the series come with it: {peer.missing}"
        yield ""
        return
    yield (
        f"river {peer.verdicts['version']}; its detectors, with their defaults, see every row. Ours looks at 40 windows for each series, "
        f"with a baseline of {change_points.BASELINE_WINDOWS} windows that starts anew at each alarm; it was not made for single random walks of "
        "a few hundred rows, and is careful there. Found: of the changes that two annotators agree on; false: no annotator "
        "marked anything near. Nearness is in windows."
    )
    yield ""
    methods = ("ours", "ADWIN", "KSWIN", "PageHinkley")
    yield from table(
        ("series", "rows", "agreed changes", *(f"{method}: found / fires / false" for method in methods)),
        (
            [
                name,
                length,
                found["ours"].annotated,
                *(f"{found[m].detected} / {found[m].fires} / {found[m].false}" for m in methods),
            ]
            for name, length, found in change_points.compare(peer.verdicts)
        ),
    )


def stationary(windows: int) -> Iterator[str]:
    yield "## A stream without drift"
    yield ""
    yield (
        f"Ten features, hourly windows of 300 to 1,700 predictions that follow the hour, {windows:,} windows after four weeks of history; and the "
        "first 192 windows (eight days) of a new version, without any. Significant: some feature of the window has a q-value below the rate, all five "
        "statistics judged and no minimum effect. Alarm: as the defaults have it."
    )
    yield ""
    later, first = run_stationary(windows), run_stationary(min(windows, 192), seed=1, with_history=False)
    yield from table(
        ("false discovery rate", "windows with something significant", "the same, first eight days"),
        ([rate, f"{later.rejecting(rate):.4f}", f"{first.rejecting(rate):.4f}"] for rate in (0.01, 0.05, 0.1)),
    )
    yield (
        f"Alarms with the defaults: {later.default_alarms} in {len(later.windows):,} windows; first eight days: {first.default_alarms} in "
        f"{len(first.windows)}."
    )
    yield ""
    yield "Share of p-values below a limit, after four weeks:"
    yield ""
    yield from table(
        ("feature", "statistic", "< 0.05", "< 0.01", "mean"),
        (
            [*key, f"{np.mean(values < 0.05):.3f}", f"{np.mean(values < 0.01):.3f}", f"{values.mean():.2f}"]
            for key, values in sorted(later.p_values().items())
        ),
    )


def fresh(seed: int = 20_261_122) -> Iterator[str]:
    yield "## Streams without drift that nothing was tuned on"
    yield ""
    yield (
        f"Other distributions, profiles and sizes ({', '.join(map(str, fresh_streams.SIZES))} predictions in an hourly window, together), defaults; "
        "with 95 % intervals that take windows for independent, which those of one stream are not. Ninth day to four weeks, and "
        f"{null_rates.JUDGED_DAYS} days after: every day of one hour of the day, of {STREAMS} streams of each size. "
        "First eight days: a version without any window before, that begins on a Monday and on a Saturday; what a week like the baseline's may bring "
        "is no drift there. Seeds are others than those that constants were chosen by."
    )
    yield ""
    rows, total = [], (fresh_streams.Rates(), fresh_streams.Rates())
    for kind in fresh_streams.KINDS:
        of_kind = (fresh_streams.Rates(), fresh_streams.Rates())
        for size in fresh_streams.SIZES:
            for rates, found in zip(of_kind, null_rates.without_drift(kind, size, range(STREAMS), seed), strict=True):
                rates.merge(found)
        for rates, found in zip(total, of_kind, strict=True):
            rates.merge(found)
        rows.append([kind.name, *_rates(fresh_streams.first_days(kind, seed)), *map(_alarms, of_kind)])
    head = (
        "stream",
        "first eight days: significant",
        "alarm",
        "ninth day to four weeks: alarm",
        "after four weeks: alarm",
    )
    yield from table(head, [*rows, ["all", "", "", *map(_alarms, total)]])
    yield from power(seed)


def power(seed: int) -> Iterator[str]:
    yield (
        f"Share of {POWER_STREAMS} streams in which the first window after a shift (in standard deviations of the values) alarms, one feature of "
        f"{null_rates.SHIFTED_FEATURES}, 400 predictions in an hourly window, by days of past:"
    )
    yield ""
    found = {days: null_rates.found_at_once(400, days, seed, POWER_STREAMS) for days in (8, 14, 28)}
    yield from table(
        ("feature", "days", *(f"{shift} sd" for shift in null_rates.SHIFTS)),
        (
            [name, days, *(f"{share:.2f}" for share in shares[name])]
            for name in next(iter(found.values()))
            for days, shares in found.items()
        ),
    )
    pasts = (0, 2 * 24, 6 * 24, 28 * 24)
    yield (
        "Hours until a lasting shift of a feature that follows neither hour nor weekday alarms, 400 predictions in an hourly window, every third "
        "judged, median of 5 streams, by how long the version was there before:"
    )
    yield ""
    yield from table(
        ("shift", *(f"{past // 24} days before" for past in pasts)),
        ([f"{shift} sd", *(_delay(shift, past, seed) for past in pasts)] for shift in (0.4, 0.8, 1.5, 3.0)),
    )


def _rates(found: fresh_streams.Rates) -> list[str]:
    return [_share(found.significant, found.windows), _alarms(found)]


def _alarms(found: fresh_streams.Rates) -> str:
    return _share(found.alarms, found.windows)


def _delay(shift: float, past_hours: int, seed: int) -> str:
    found = [fresh_streams.hours_until_found(shift, past_hours, seed + stream) for stream in range(5)]
    median = sorted(240 if hours is None else hours for hours in found)[2]
    return "not in ten days" if median == 240 else str(median)


def _share(count: int, windows: int) -> str:
    interval = rate_interval(count, windows)
    return f"{interval.estimate:.3f} ({interval.lower:.3f} to {interval.upper:.3f})"


def intervals() -> Iterator[str]:
    yield "## Intervals of simulated samples, stated 0.95"
    yield ""
    yield "Quality without labels, 500 chunks of 1,000 whose mix of cases differs from the reference's (covariate shift):"
    yield ""
    yield from table(
        ("metric", "covered"), ([name, f"{value:.3f}"] for name, value in coverage.label_free_coverage().items())
    )
    yield (
        "Streams of 100 windows whose labels come 1 to 3 windows later, of a classifier that was calibrated at first; cells as above:"
    )
    yield ""
    followed: dict[str, list[label_delay.Followed]] = {}
    for delay in (1, 2, 3):
        found = dict(label_delay.simulated(delay, seed=20_261_122))
        followed |= {f"{kind}, {delay} later": rows for kind, rows in found.items()}
        yield from _followed(f"{delay} later", found)
    yield from _beyond_chance(followed)
    yield "AUC with few positives among 1,000 negatives, 400 samples each:"
    yield ""
    yield from table(
        ("positives", "true AUC", "covered"),
        ([count, f"{truth:.3f}", f"{value:.3f}"] for count, truth, value in coverage.auc_coverage()),
    )


def sketches() -> Iterator[str]:
    yield "## Sketches"
    yield ""
    yield "A million log-normal values in batches of 2,000; 50 parts merged; processor time; errors in ranks, tails = ranks 0.001 and 0.999."
    yield ""
    yield from table(
        ("sketch", "ns per value", "bytes", "merge, µs", "largest error", "in the tails"),
        (
            [
                c.name,
                f"{c.ns_per_value:.0f}",
                f"{c.size_bytes:,}",
                f"{c.merge_us:.0f}",
                f"{c.largest_error:.4f}",
                f"{c.tail_error:.4f}",
            ]
            for c in sketch_speed.candidates()
        ),
    )
    yield "Ours, 8 numeric and 2 categorical features at 50,000 events/s, as a share of one core:"
    yield ""
    yield from table(
        ("rows in an update", "share"),
        ([size, f"{sketch_speed.share_of_a_core(size):.3f}"] for size in (200, 1_000, 5_000)),
    )


def table(head: Iterable[str], rows: Rows) -> Iterator[str]:
    titles = list(head)
    yield "| " + " | ".join(titles) + " |"
    yield "|" + " --- |" * len(titles)
    for row in rows:
        yield "| " + " | ".join(map(str, row)) + " |"
    yield ""


def _number(value: float | None, form: str) -> str:
    return "" if value is None or np.isnan(value) else format(value, form)


def _methods(found: dict[str, list[str]]) -> str:
    return "; ".join(f"{method}: {_spans(chunks)}" for method, chunks in sorted(found.items()))


def _spans(chunks: list[str]) -> str:
    """Join chunks that follow each other: 3, 4, 5 becomes 3-5."""
    spans: list[list[tuple[str, int]]] = []
    for chunk in chunks:
        prefix, number = ("r", int(chunk[1:])) if chunk.startswith("r") else ("", int(chunk))
        if spans and spans[-1][-1] == (prefix, number - 1):
            spans[-1].append((prefix, number))
        else:
            spans.append([(prefix, number)])
    parts = [f"{p}{n}" if len(span) == 1 else f"{p}{n}-{span[-1][1]}" for span in spans for p, n in span[:1]]
    return ", ".join(parts) or "never"


if __name__ == "__main__":
    main()
