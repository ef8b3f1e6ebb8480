"""The truth about the monitor's statistics: on public data beside other libraries, and on streams whose truth is known.

    python -m benchmarks.monitoring            writes benchmarks/results/monitoring.md

Installs NannyML and river into environments of their own (.venv-nannyml, .venv-river); takes about a quarter of an hour of one core.
"""

import argparse
import platform
import tempfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

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
from services.monitor.domain.interval import rate_interval

RESULTS = ROOT / "benchmarks" / "results" / "monitoring.md"
Rows = Iterable[Iterable[object]]
STREAMS, POWER_STREAMS = 6, 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=1_000, help="windows of the stationary stream")
    windows = parser.parse_args().windows
    lines = [
        "# Monitoring: what fires, when, and what fires falsely",
        "",
        f"`python -m benchmarks.monitoring`, {datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}.",
        "Defaults of the policy: false discovery rate 0.01, minimum effects PSI 0.1, Jensen-Shannon 0.1, KS 0.1.",
        "",
    ]
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
    RESULTS.write_text("\n".join(lines).rstrip() + "\n")
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
            "Realised figure inside the 95 % interval. Held out: calibrated on the first half of the reference, held against "
            "its second half. Analysis: calibrated on the reference, drift and all; NannyML's band is ± 3 standard errors, so it "
            "states more than 99 %. Both estimate the same (mean error). The method assumes that a probability goes on meaning "
            "what it meant; where the analysis drifts so that it does not, as for recall in the second half of car_loan, "
            "intervals cover less than stated, and no statistic without labels can tell. The second table of each size: labels "
            "come so many chunks later, the calibration is learnt anew with each, and intervals are held against them."
        )
        yield ""
        for size in (1_000, 5_000):
            yield from _coverage(folder / f"{name}.parquet", size, verdicts["quality"][str(size)])
            delays = {delay: public_sets.followed(folder / f"{name}.parquet", size, delay) for delay in (1, 2, 3)}
            yield from _followed(f"chunks of {size:,}", {f"{delay} later": rows for delay, rows in delays.items()})


def unseen(folder: Path, peer: Peer) -> Iterator[str]:
    yield "## Quality without labels on sets that nothing was tuned on"
    yield ""
    yield (
        "Every constant was fixed before these were looked at. Stated 0.95; labels come so many chunks later; covered by intervals that assume no "
        "concept drift → by those held against labels, and how much wider these are. Said: the coverage that answers state, with "
        "its interval, on average over the same chunks. NannyML's synthetic work_home and modified housing; flights: "
        "late or not from the schedule alone, April to December after February and March; rotating: a plane that turns for 20,000 rows, "
        "stands still for 20,000 and turns again. Windows that are missing were refused: the classifier was no longer calibrated."
    )
    yield ""
    held_out.prepare(folder)
    rows: list[label_delay.Followed] = []
    for name, sizes in held_out.SETS.items():
        path = folder / f"{name}.parquet"
        if not path.exists():
            yield f"{name} comes with NannyML: {peer.missing}"
            yield ""
            continue
        for size in sizes:
            found = {f"{delay} later": public_sets.followed(path, size, delay) for delay in (1, 2, 3)}
            rows += [row for follows in found.values() for row in follows]
            yield from _followed(f"{name}, chunks of {size:,}", found)
    held = sum(row.said[1] <= row.covered for row in rows)
    yield f"Covered at least as often as the lower end of what was said: {held} of {len(rows)} figures."
    yield ""


def _coverage(path: Path, size: int, verdicts: dict[str, object]) -> Iterator[str]:
    held_out = public_sets.coverage_table(path, size, {}, held_out=True)
    analysis = public_sets.coverage_table(path, size, verdicts, held_out=False)
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
            "mean error",
            "NannyML: analysis",
            "width",
            "mean error",
        ),
        (
            [
                row.metric,
                f"{before[row.metric].covered:.2f} of {before[row.metric].chunks}",
                f"{row.covered:.2f} of {row.chunks}",
                f"{row.width:.3f}",
                f"{row.error:.4f}",
                _number(row.their_covered, ".2f"),
                _number(row.their_width, ".3f"),
                _number(row.their_error, ".4f"),
            ]
            for row in analysis
        ),
    )


def _followed(head: str, found: dict[str, list[label_delay.Followed]]) -> Iterator[str]:
    """Coverage by those that assume no drift, then by those that were held against labels; and how much wider these are."""
    by_metric = {name: {row.metric: row for row in rows} for name, rows in found.items()}
    metrics = sorted({metric for rows in by_metric.values() for metric in rows})
    rows = ([metric, *(_before_and_after(row.get(metric)) for row in by_metric.values())] for metric in metrics)
    yield from table((head, *found), rows)


def _before_and_after(row: label_delay.Followed | None) -> str:
    if row is None:
        return ""
    wider = f"{row.width / row.plain_width:.2f} times as wide" if row.plain_width else "without width"
    said, lower, upper = row.said
    return (
        f"{row.plain:.2f} → {row.covered:.2f} of {row.windows}, said {said:.2f} ({lower:.2f} to {upper:.2f}), {wider}"
    )


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
        "with 95 % intervals that take windows for independent, which those of one stream are not. After four weeks: "
        f"{null_rates.JUDGED_DAYS} days of one hour of the day, of {STREAMS} streams of each size, every day of which was judged from the ninth on. "
        "First eight days: a version without any window before, that begins on a Monday and on a Saturday; what a week like the baseline's may bring "
        "is no drift there. Seeds are others than those that constants were chosen by."
    )
    yield ""
    rows, total = [], fresh_streams.Rates()
    for kind in fresh_streams.KINDS:
        later = fresh_streams.Rates()
        for size in fresh_streams.SIZES:
            later.merge(null_rates.without_drift(kind, size, range(STREAMS), seed))
        total.merge(later)
        rows.append([kind.name, *_rates(later), *_rates(fresh_streams.first_days(kind, seed))])
    head = ("stream", "after four weeks: significant", "alarm", "first eight days: significant", "alarm")
    yield from table(head, [*rows, ["all", *_rates(total), "", ""]])
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
    return [_share(found.significant, found.windows), _share(found.alarms, found.windows)]


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
        "Streams of 100 windows whose labels come 1 to 3 windows later, of a classifier that was calibrated at first; covered by intervals that "
        "assume no concept drift → by those held against labels, and how much wider these are:"
    )
    yield ""
    for delay in (1, 2, 3):
        found = dict(label_delay.simulated(delay, seed=20_261_121))
        yield from _followed(f"{delay} later", found)
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
    return "" if value is None else format(value, form)


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
