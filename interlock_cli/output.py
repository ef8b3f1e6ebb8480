"""What commands print: tables on a terminal, plain aligned text in a pipe, JSON on request."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from interlock_cli.errors import CommandFailed

Row = Sequence[str]


def say(text: str = "") -> None:
    """Print a line as it is, however long."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """Print a value as indented JSON, with nothing else around it."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Row], *, empty: str = "nothing to show") -> None:
    """Print rows under their columns; `empty` stands for none at all."""
    if not rows:
        say(empty)
        return
    console = Console()
    if console.is_terminal:
        console.print(_rich_table(columns, rows))
        return
    for line in plain_lines(columns, rows):
        sys.stdout.write(line + "\n")


def plain_lines(columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Return the table as lines of aligned text, nothing cut off; what `grep` and `awk` want."""
    table = [
        tuple(name.upper().replace(" ", "_") for name in columns),
        *(tuple(cell or "-" for cell in row) for row in rows),
    ]
    widths = [max(len(row[index]) for row in table) for index in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def print_failure(error: CommandFailed) -> None:
    """Print why a command failed, and what to do, on standard error."""
    console = Console(stderr=True, soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), error.message))
    for hint in error.hints:
        console.print(Text(f"  {hint}"))


def duration(seconds: float | None) -> str:
    """Return a duration as people read it: 42s, 3m10s, 2h05m, 3d04h."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    for unit, size, rest, rest_size in (("d", 86_400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // rest_size:02d}{rest}"
    return f"{whole}s"


def _rich_table(columns: Sequence[str], rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        # Text, not str: what a server says is never markup.
        table.add_row(*(Text(cell or "-") for cell in row))
    return table
