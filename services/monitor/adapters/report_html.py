"""A report as one page that loads nothing: plots are inline SVG."""

import io
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from services.monitor.domain.drift import FeatureDrift
from services.monitor.domain.drift_metric import DriftMetric
from services.monitor.domain.interval import Interval
from services.monitor.domain.policy import SECOND_US
from services.monitor.domain.profile import FeatureProfile, Histogram, NumericProfile
from services.monitor.domain.quality import EstimateBasis, QualityMetric
from services.monitor.domain.quality_window import QualityWindow
from services.monitor.domain.report_page import Findings
from services.monitor.domain.window import WindowSketch
from services.monitor.domain.window_series import Placed, merged

_TEMPLATE: Final = "report.html.j2"
_THEN, _NOW, _BAD, _SOFT = "#9aa5b1", "#1f6feb", "#d1242f", "#57606a"
_SHOWN_FEATURES: Final = 12
_SHOWN_CATEGORIES: Final = 10
_SHOWN_OUTSIDE: Final = 0.005
_LABELS_A_POINT: Final = 50
_OVER_TIME: Final = (("auc", "AUC"), ("brier", "Brier score"), ("root_mean_squared_error", "Root mean squared error"))


def write_page(findings: Findings) -> bytes:
    """Return the page as UTF-8."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"time": _time, "interval": _interval, "how": _how, "number": _number, "percent": _percent}
    scope = findings.quality.scope
    page = environment.get_template(_TEMPLATE).render(
        findings=findings,
        scope=scope,
        traffic_plot=_traffic(findings.windows),
        quality_plots=list(_quality(findings.labelled)),
        calibration_plot=_calibration(findings),
        distributions=list(_distributions(findings)),
        psi=DriftMetric.PSI,
        gaps=("demographic_parity", "equal_opportunity", "predictive_parity", "false_positive_rate"),
    )
    return page.encode()


def _traffic(windows: Sequence[Placed[WindowSketch]]) -> Markup:
    if not windows:
        return Markup()
    figure, axes = _figure(9.6, 2.2)
    starts, widths = _times(windows)
    good = [placed.window.ok_count for placed in windows]
    bad = [placed.window.prediction_count - placed.window.ok_count for placed in windows]
    axes.bar(starts, good, widths, align="edge", color=_NOW, label="answered")
    if any(bad):
        axes.bar(starts, bad, widths, bottom=good, align="edge", color=_BAD, label="failed")
        axes.legend(frameon=False, fontsize=8)
    axes.set_ylabel("predictions")
    _dated(axes)
    return _svg(figure, "Predictions over time")


def _quality(labelled: Sequence[Placed[QualityWindow]]) -> Iterator[Markup]:
    """Yield a plot of each metric over time, with intervals."""
    stretches = _stretches(labelled)
    for name, title in _OVER_TIME:
        points = []
        for placed in stretches:
            found = next((metric.value for metric in placed.window.quality.metrics() if metric.name == name), None)
            if found is not None and math.isfinite(found.estimate):
                middle = (placed.start_us + placed.end_us) / 2 / SECOND_US
                points.append((datetime.fromtimestamp(middle, UTC), found))
        if len(points) > 1:
            figure, axes = _figure(4.7, 2.4)
            times, values = [time for time, _ in points], [value for _, value in points]
            axes.fill_between(times, [v.lower for v in values], [v.upper for v in values], color=_NOW, alpha=0.15, lw=0)
            axes.plot(times, [value.estimate for value in values], color=_NOW, lw=1.5, marker="o", ms=2.5)
            axes.set_title(title, fontsize=10, loc="left")
            _dated(axes)
            yield _svg(figure, f"{title} over time, with 95 % intervals")


def _stretches(labelled: Sequence[Placed[QualityWindow]]) -> list[Placed[QualityWindow]]:
    """Return windows joined until each holds enough labels to say something."""
    found: list[Placed[QualityWindow]] = []
    for placed in labelled:
        last = found[-1] if found else None
        if last is not None and last.window.quality.labelled_weight < _LABELS_A_POINT:
            last.window.merge(placed.window)
            found[-1] = Placed(last.start_us, placed.end_us, last.window)
        else:
            # A copy: what it was made from stays as it is.
            found.append(Placed(placed.start_us, placed.end_us, QualityWindow.from_bytes(placed.window.to_bytes())))
    if len(found) > 1 and found[-1].window.quality.labelled_weight < _LABELS_A_POINT:
        last = found.pop()
        found[-1].window.merge(last.window)
        found[-1] = Placed(found[-1].start_us, last.end_us, found[-1].window)
    return found


def _calibration(findings: Findings) -> Markup:
    bins = findings.quality.calibration
    if not bins:
        return Markup()
    figure, axes = _figure(4.7, 3.6)
    axes.plot([0, 1], [0, 1], color=_THEN, lw=1, ls="--")
    said, rates = [found.mean_probability for found in bins], [found.observed_rate for found in bins]
    seen = [rate.estimate for rate in rates]
    spread = [[rate.estimate - rate.lower for rate in rates], [rate.upper - rate.estimate for rate in rates]]
    axes.errorbar(said, seen, yerr=np.clip(spread, 0, None), color=_NOW, fmt="o", ms=4, lw=1.2, capsize=2)
    end = min(1.0, 1.05 * max([*said, *(rate.upper for rate in rates)]))
    axes.set(xlim=(0, end), ylim=(0, end), xlabel="predicted probability", ylabel="observed rate")
    return _svg(figure, "Calibration: observed rate by predicted probability")


def _distributions(findings: Findings) -> Iterator[tuple[FeatureDrift, Markup]]:
    """Yield the features that differ most from the baseline, each with a plot of then and now."""
    drift, baseline = findings.drift, findings.quality.scope.info.baseline
    if drift is None or baseline is None or not findings.windows:
        return
    total = merged(findings.windows)
    for found in drift.features[:_SHOWN_FEATURES]:
        profile = (baseline.outputs if found.is_output else baseline.features).get(found.name)
        sketch = (total.outputs if found.is_output else total.features).get(found.name)
        if profile is None or sketch is None:
            continue
        then, now = profile.content.histogram(), sketch.histogram()
        if then.total and now.total and then.counts.shape == now.counts.shape:
            yield found, _distribution(found, profile, then, now)


def _distribution(found: FeatureDrift, profile: FeatureProfile, then: Histogram, now: Histogram) -> Markup:
    figure, axes = _figure(4.7, 2.3)
    shares = then.counts / then.total, now.counts / now.total
    if isinstance(profile.content, NumericProfile) and then.edges is not None and then.edges.size > 1:
        _steps(axes, then, shares)
    else:
        _bars(axes, profile, shares)
    axes.set_title(found.name, fontsize=10, loc="left")
    axes.set_yticks([])
    return _svg(figure, f"{found.name}: training in grey, now in blue")


def _steps(axes: Any, then: Histogram, shares: tuple[Any, Any]) -> None:
    """Draw densities over the bins; where a bin is one value, bars over the values."""
    assert then.edges is not None, "the caller has looked"
    if then.points is not None:
        names = ["less", *(f"{point:g}" for point in then.points), "more"]
        # What is outside of all that was seen in training has a place of its own, where there is something.
        shown = np.flatnonzero([bool(shares[1][0]), *[True] * then.points.size, bool(shares[1][-1])])
        places = np.arange(shown.size)
        for share, colour, shift in ((shares[0], _THEN, -0.2), (shares[1], _NOW, 0.2)):
            axes.bar(places + shift, share[shown], 0.4, color=colour)
        axes.set_xticks(places, [names[index] for index in shown], fontsize=7)
        return
    widths = np.diff(then.edges)
    if (outside := float(shares[1][0] + shares[1][-1])) >= _SHOWN_OUTSIDE:
        axes.set_title(f"{outside:.0%} beyond training", fontsize=8, loc="right", color=_BAD)
    for share, colour, filled in ((shares[0], _THEN, True), (shares[1], _NOW, False)):
        density = share[1:-1] / np.maximum(widths, 1e-12)
        if filled:
            axes.stairs(density, then.edges, color=colour, fill=True, alpha=0.5)
        else:
            axes.stairs(density, then.edges, color=colour, lw=1.6)


def _bars(axes: Any, profile: FeatureProfile, shares: tuple[Any, Any]) -> None:
    names = [*getattr(profile.content, "categories", ()), "other"]
    both = shares[0] + shares[1]
    order = np.argsort(-both, kind="stable")[: min(_SHOWN_CATEGORIES, np.count_nonzero(both))]
    places = np.arange(order.size)
    for share, colour, shift in ((shares[0], _THEN, -0.2), (shares[1], _NOW, 0.2)):
        axes.bar(places + shift, share[order], 0.4, color=colour)
    axes.set_xticks(places, [_short(names[index]) for index in order], fontsize=7)


def _short(text: str) -> str:
    return text if len(text) <= 10 else f"{text[:9]}\N{HORIZONTAL ELLIPSIS}"


def _times(windows: Sequence[Placed[Any]]) -> tuple[list[datetime], list[float]]:
    starts = [datetime.fromtimestamp(placed.start_us / SECOND_US, UTC) for placed in windows]
    day_us = 86_400 * SECOND_US
    return starts, [0.9 * (placed.end_us - placed.start_us) / day_us for placed in windows]


def _dated(axes: Any) -> None:
    locator: Any = AutoDateLocator(maxticks=8)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    """Return a figure of its own: pyplot's state is not for threads."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_THEN)
    axes.tick_params(colors=_SOFT, labelsize=8, length=3)
    axes.yaxis.label.set(color=_SOFT, size=8)
    axes.xaxis.label.set(color=_SOFT, size=8)
    return figure, axes


def _svg(figure: Figure, description: str) -> Markup:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    svg = text[text.index("<svg") :]
    label = Markup.escape(description)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))  # noqa: S704  matplotlib escapes texts


def _time(time_us: int) -> str:
    return f"{datetime.fromtimestamp(time_us / SECOND_US, UTC):%Y-%m-%d %H:%M}"


def _interval(value: Interval) -> str:
    ends = f"{value.lower:.4g} to {value.upper:.4g}" if value.level else "no interval"
    return f"{value.estimate:.4g} ({ends})"


def _how(metric: QualityMetric) -> str:
    match metric.basis:
        case None:
            return "measured"
        case EstimateBasis.DRIFTED_INPUTS:
            return f"estimated without labels, how surely is unknown: no labels yet with {', '.join(metric.unsupported_inputs)} as now"
        case EstimateBasis.NO_BASELINE:
            return "estimated without labels, how surely is unknown: no baseline tells whether inputs have drifted"
    if metric.coverage is None:
        return "estimated without labels, not yet held against any"
    known = f"{100 * metric.coverage.lower:.0f} to {100 * metric.coverage.upper:.0f} % of such intervals are"
    return f"estimated without labels, interval was right {metric.held_count} of {metric.checked_count} times before ({known})"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.4g}" if value != int(value) else f"{int(value):,}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"
