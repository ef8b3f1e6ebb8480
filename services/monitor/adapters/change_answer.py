"""Answers to changes, kept for a day under the request id that came with them."""

from typing import Final

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.monitor.adapters.table import CHANGE_ANSWER
from services.monitor.domain.alert_ports import RequestKey
from services.monitor.domain.failure import RequestIdReused
from services.monitor.domain.policy import DAY_US

_C: Final = CHANGE_ANSWER.c


async def recall(connection: AsyncConnection, key: RequestKey, now_us: int) -> str | None:
    """Return what a request was answered within the last day; raises RequestIdReused for another one."""
    if not key.request_id:
        return None
    await connection.execute(delete(CHANGE_ANSWER).where(_C.create_us < now_us - DAY_US))
    row = (await connection.execute(select(_C.digest, _C.body).where(_C.request_id == key.request_id))).first()
    if row is None:
        return None
    if bytes(row.digest) != key.digest:
        raise RequestIdReused(key.request_id)
    body: str = row.body
    return body


async def remember(connection: AsyncConnection, key: RequestKey, body: str, now_us: int) -> None:
    """Keep an answer, in the transaction of what it tells."""
    if key.request_id:
        values = {"request_id": key.request_id, "digest": key.digest, "body": body, "create_us": now_us}
        await connection.execute(insert(CHANGE_ANSWER).values(values))
