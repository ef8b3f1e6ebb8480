"""Commands about the log of predictions."""

import json
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final

import typer
from interlock.monitor.v1 import prediction_log_service_pb2 as pb

from interlock_cli.commands.running import Target, call
from interlock_cli.errors import CommandFailed
from interlock_cli.output import print_table, say
from interlock_sdk.client import Client
from services.common.duration_text import DURATION_FORM, parse_duration

if TYPE_CHECKING:
    import pyarrow as pa

app = typer.Typer(help="Ask the log of predictions.", no_args_is_help=True)
_DEFAULT_ROWS: Final = 10_000


class Format(StrEnum):
    """How the rows are written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="One SELECT over the view `predictions`, in DuckDB's dialect.")],
    *,
    model: Annotated[str, typer.Option(help="The view has this model only, with its features.")] = "",
    since: Annotated[str, typer.Option(help="The view begins so long ago, such as 24h or 7d.")] = "",
    limit: Annotated[int, typer.Option(help="Most rows.", min=1, max=10_000_000)] = _DEFAULT_ROWS,
    form: Annotated[Format, typer.Option("--format", help="How the rows are written.")] = Format.TABLE,
    output: Annotated[
        Path | None, typer.Option(help="File to write. Default: standard output.", dir_okay=False)
    ] = None,
    target: Target = "",
) -> None:
    """Run a query, for example: SELECT features.carrier, avg(label) FROM predictions GROUP BY 1."""
    request = pb.QueryPredictionLogRequest(sql=sql, model=model, max_row_count=limit)
    if since:
        request.start_time.FromDatetime(datetime.now(UTC) - _duration(since))
    if form is Format.PARQUET and output is None:
        raise CommandFailed("--format parquet writes a file", ["name it with --output"])

    async def work(client: Client) -> tuple[bytes, bool]:
        content, truncated = bytearray(), False
        async for part in client.monitoring.query_log(request):
            content += part.arrow_stream
            truncated = part.truncated
        return bytes(content), truncated

    content, truncated = call(target, work)
    _write(_table(content), form, output)
    if truncated:
        sys.stderr.write(f"only the first {limit} rows; --limit gives more\n")


def _table(content: bytes) -> "pa.Table":
    try:
        import pyarrow as pa  # noqa: PLC0415 - heavy, and no other command needs it
    except ImportError:
        raise CommandFailed("this command needs pyarrow", ["pip install pyarrow"]) from None
    return pa.ipc.open_stream(content).read_all()


def _duration(text: str) -> timedelta:
    found = parse_duration(text)
    if found is None:
        raise CommandFailed(f'--since: want {DURATION_FORM}, got "{text}"')
    return found


def _write(table: "pa.Table", form: Format, output: Path | None) -> None:
    if form is Format.TABLE and output is None:
        rows = [[_cell(value) for value in row.values()] for row in table.to_pylist()]
        print_table(table.column_names, rows, empty="no rows")
        return
    # A table in a file would have to be taken apart again.
    write = _WRITERS.get(form, _write_json)
    if output is None:
        write(table, sys.stdout.buffer)
        return
    with output.open("wb") as file:
        write(table, file)
    say(f"{table.num_rows} rows in {output}")


def _write_json(table: "pa.Table", file: BinaryIO) -> None:
    file.write(json.dumps(table.to_pylist(), indent=2, default=str).encode() + b"\n")


def _write_csv(table: "pa.Table", file: BinaryIO) -> None:
    import pyarrow as pa  # noqa: PLC0415 - as above
    from pyarrow import csv  # noqa: PLC0415

    flat = {
        name: pa.array([json.dumps(value, default=str) for value in column.to_pylist()])
        if pa.types.is_nested(column.type)
        else column
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    csv.write_csv(pa.table(flat), file)


def _write_parquet(table: "pa.Table", file: BinaryIO) -> None:
    from pyarrow import parquet  # noqa: PLC0415 - as above

    parquet.write_table(table, file)


_WRITERS: "Final[Mapping[Format, Callable[[pa.Table, BinaryIO], None]]]" = {
    Format.CSV: _write_csv,
    Format.PARQUET: _write_parquet,
}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value, default=str) if isinstance(value, dict | list) else str(value)
