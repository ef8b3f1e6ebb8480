"""What the demo shows: steps as they are done, progress, and the tables at the end."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from interlock.types.v1.interval_pb2 import Interval
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from interlock_cli.demo.quality import Quality
from interlock_cli.demo.results import VersionResult
from interlock_cli.demo.traffic import Answer
from interlock_cli.demo.verdict import Verdict, drifted

_TABLE_WIDTH = 80
_SHOWN_METRICS = ("auc", "brier")
_SHOWN_DRIFT = 3


class DemoReport:
    """Writes to a terminal with colour and motion, and to anything else as plain lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._elapsed_s = 0.0

    def line(self, text: str) -> None:
        """Says something."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def done(self, text: str) -> None:
        """Says that a step is done."""
        self.line(f"[green]ok[/green]  {text}")

    @contextmanager
    def doing(self, text: str) -> Iterator[None]:
        """Shows what is being done for as long as the context lasts; on a terminal only."""
        if not self._console.is_terminal:
            yield
            return
        with self._console.status(text):
            yield

    @contextmanager
    def counting(self, text: str, total: int) -> Iterator[Callable[[], None]]:
        """Shows a bar that grows by one with each call of what it gives; on a terminal only."""
        columns = (TextColumn("    {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        bar = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        with bar:
            task = bar.add_task(text, total=total)
            yield lambda: bar.advance(task)

    def qualities(self, title: str, results: Sequence[VersionResult]) -> None:
        """Prints a table with one line per version."""
        table = Table(title=title, title_justify="left", box=None)
        table.add_column("version", no_wrap=True)
        table.add_column("learned from", no_wrap=True)
        for heading in ("flights", "AUC", "Brier", "base rate*", "hindsight**"):
            table.add_column(heading, justify="right", no_wrap=True)
        for result in results:
            table.add_row(result.version_id, result.learned_from, *_cells(result.quality))
        self.line("")
        if self._console.width < _TABLE_WIDTH:
            # In a narrow window whole figures that wrap beat figures that are cut.
            table.width = _TABLE_WIDTH
        self._console.print(table, crop=False)

    def verdicts(self, verdicts: Sequence[Verdict], address: str) -> None:
        """Shows what the monitor says: quality with intervals, and the largest drift."""
        quality = self._table("What the monitor says of the replay (95 % intervals)")
        quality.add_column("version", no_wrap=True)
        quality.add_column("labels", justify="right", no_wrap=True)
        for metric in _SHOWN_METRICS:
            quality.add_column(metric, no_wrap=True)
        drift = self._table("Drift from training (PSI)")
        drift.add_column("version", no_wrap=True)
        drift.add_column("the largest, drift in bold", no_wrap=True)
        for verdict in verdicts:
            found = {metric.name: metric.value for metric in verdict.quality.metrics}
            cells = [_interval(found[metric]) if metric in found else "-" for metric in _SHOWN_METRICS]
            quality.add_row(verdict.version_id, f"{verdict.quality.labelled_count:,}", *cells)
            shown = [
                _emphasised(f"{name} {psi:.2f}", strong=is_drift)
                for name, psi, is_drift in drifted(verdict, _SHOWN_DRIFT)
            ]
            drift.add_row(verdict.version_id, ", ".join(shown) or "-")
        for table in (quality, drift):
            self.line("")
            self._console.print(table, crop=False)
        self.line("")
        for verdict in verdicts:
            self.line(f"report on version {verdict.version_id}: http://{address}{verdict.report}")

    def _table(self, title: str) -> Table:
        return Table(title=title, title_justify="left", box=None, width=max(self._console.width, _TABLE_WIDTH))

    def footnotes(self) -> None:
        """Explains the tables' last two columns."""
        self.line("*  Brier score of always answering the share of late flights in the version's training data")
        self.line("** Brier score of always answering the share of late flights among the very flights judged")

    def took(self, elapsed_s: float) -> None:
        """Adds to the time that answers took."""
        self._elapsed_s += elapsed_s

    def answers(self, answers: Sequence[Answer]) -> None:
        """Says how fast the answers came."""
        median, tail = (1000 * value for value in np.quantile([answer.latency_s for answer in answers], (0.5, 0.99)))
        rate = len(answers) / self._elapsed_s
        self.done(
            f"{len(answers):,} flights through the REST door in {self._elapsed_s:.1f} s: "
            f"{rate:,.0f}/s, p50 {median:.1f} ms, p99 {tail:.1f} ms"
        )


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Gives a function that tells the seconds since the context began."""
    started = time.perf_counter()
    yield lambda: time.perf_counter() - started


def _interval(value: Interval) -> str:
    return f"{value.estimate:.3f} ({value.lower:.3f} to {value.upper:.3f})"


def _emphasised(text: str, *, strong: bool) -> str:
    return f"[bold]{text}[/bold]" if strong else text


def _cells(quality: Quality) -> tuple[str, ...]:
    scores = (quality.auc, quality.brier, quality.prior_brier, quality.hindsight_brier)
    return (f"{quality.flight_count:,}", *(f"{score:.4f}" for score in scores))
