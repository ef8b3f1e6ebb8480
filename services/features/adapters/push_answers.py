"""Answers to pushes that carried a request id, kept in Redis for a day so that a retry gets the same one."""

import hashlib
from typing import Final

from interlock.features.v1 import feature_service_pb2 as pb

from services.features.adapters.redis_store import RedisStore
from services.features.domain.failure import RequestIdReused

_KEEP_S: Final = b"86400"
_DIGEST_BYTES: Final = 32


class RedisPushAnswers:
    """Remembers answers by caller and request id, and that the body was the same."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store

    async def recall(
        self, principal: str, request_id: str, request: pb.PushFeaturesRequest
    ) -> pb.PushFeaturesResponse | None:
        """Return the answer that was given before; raises RequestIdReused when it was to something else."""
        # Not as a read: those have the time of a prediction, after which the store counts as gone.
        (found,) = await self._store.write([(b"GET", _key(principal, request_id))])
        if found is None:
            return None
        if found[:_DIGEST_BYTES] != _digest(request):
            raise RequestIdReused(request_id)
        return pb.PushFeaturesResponse.FromString(found[_DIGEST_BYTES:])

    async def remember(
        self, principal: str, request_id: str, request: pb.PushFeaturesRequest, answer: pb.PushFeaturesResponse
    ) -> None:
        """Keep an answer."""
        value = _digest(request) + answer.SerializeToString()
        await self._store.write([(b"SET", _key(principal, request_id), value, b"EX", _KEEP_S)])


def _key(principal: str, request_id: str) -> bytes:
    return b"p:" + hashlib.sha256(f"{principal}\n{request_id}".encode()).hexdigest().encode()


def _digest(request: pb.PushFeaturesRequest) -> bytes:
    body = pb.PushFeaturesRequest()
    body.CopyFrom(request)
    body.request_id = ""
    return hashlib.sha256(body.SerializeToString(deterministic=True)).digest()
