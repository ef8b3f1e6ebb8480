"""Tables and queries of databases, read piece by piece. The drivers that this project has are asyncio's."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncResult, create_async_engine

from services.common.database import async_url


class SqlUnreadable(Exception):
    """The database or the query does not do what is asked; the text says why."""


def read_query(url: str, query: str, rows_a_piece: int) -> Iterator[pa.RecordBatch]:
    """Yield the result of a query in pieces, from a read-only transaction; raises SqlUnreadable."""
    try:
        yield from _read(url, query, rows_a_piece)
    except (SQLAlchemyError, OSError, pa.ArrowException) as error:
        raise SqlUnreadable(str(error)) from error


def _read(url: str, query: str, rows_a_piece: int) -> Iterator[pa.RecordBatch]:
    engine = create_async_engine(async_url(url))
    with asyncio.Runner() as runner:

        async def begin() -> tuple[Any, AsyncResult[Any]]:
            connection = await engine.connect()
            if engine.dialect.name == "postgresql":
                await connection.execution_options(postgresql_readonly=True)
            elif engine.dialect.name == "sqlite":
                await connection.exec_driver_sql("PRAGMA query_only = ON")
            return connection, await connection.stream(text(query))

        connection = None
        try:
            connection, result = runner.run(begin())
            names = list(result.keys())
            while rows := runner.run(_fetch(result, rows_a_piece)):
                columns = zip(*rows, strict=True)
                yield pa.RecordBatch.from_arrays([_column(each) for each in columns], names=names)
        finally:
            if connection is not None:
                runner.run(connection.close())
            runner.run(engine.dispose())


async def _fetch(result: AsyncResult[Any], count: int) -> Sequence[Any]:
    return await result.fetchmany(count)


def _column(values: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        # SQLite's columns hold what they were given: text keeps it all, and the conversion decides.
        return pa.array([None if value is None else str(value) for value in values], pa.string())
