"""Answers to requests with an idempotency key, kept for a day in the transaction that makes the change."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.features.adapters.table import ANSWER
from services.features.domain.failure import RequestIdReused

_WINDOW_US: Final = timedelta(hours=24) // timedelta(microseconds=1)


@dataclass(frozen=True)
class AnswerKey:
    """Who asked what, under which idempotency key."""

    principal: str
    request_id: str
    fingerprint: str


async def recall(connection: AsyncConnection, key: AnswerKey, now_us: int) -> bytes | None:
    """Return the answer that was given to this request within the last day; RequestIdReused for another one."""
    await connection.execute(delete(ANSWER).where(ANSWER.c.time_us <= now_us - _WINDOW_US))
    query = select(ANSWER).where(ANSWER.c.principal == key.principal, ANSWER.c.request_id == key.request_id)
    row = (await connection.execute(query)).mappings().one_or_none()
    if row is None:
        return None
    if row["fingerprint"] != key.fingerprint:
        raise RequestIdReused(key.request_id)
    answer: bytes = row["body"]
    return answer


async def remember(connection: AsyncConnection, key: AnswerKey, answer: bytes, now_us: int) -> None:
    """Keep the answer to a request."""
    values = {
        "principal": key.principal,
        "request_id": key.request_id,
        "fingerprint": key.fingerprint,
        "body": answer,
        "time_us": now_us,
    }
    await connection.execute(insert(ANSWER).values(values))
