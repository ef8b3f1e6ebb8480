"""Retries for background and start-up work: bounded in time, full jitter, only what may pass by itself.

Never in the path of a request: there the channel retries, once, and nothing else does.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import grpc
import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_before_delay, stop_never
from tenacity.wait import wait_random_exponential

from services.common.errors import Unavailable

_T = TypeVar("_T")
_LOG: Final = structlog.get_logger(part="retry")
_PASSING_CODES: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


def is_passing(error: BaseException) -> bool:
    """Return whether the same work may succeed a little later: a peer is down, slow or not there yet."""
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code() in _PASSING_CODES
    return isinstance(error, (Unavailable, ConnectionError, TimeoutError))


async def retry(
    work: Callable[[], Awaitable[_T]],
    what: str,
    *,
    give_up_after_s: float | None,
    first_wait_s: float = 0.1,
    longest_wait_s: float = 10.0,
    is_retryable: Callable[[BaseException], bool] = is_passing,
) -> _T:
    """Run `work` until it succeeds, fails for good, or no attempt fits into `give_up_after_s` (None: for ever).

    Waits are drawn from 0 to an exponentially growing bound. The last error is raised as it is; a cancellation at once.
    """
    attempts = AsyncRetrying(
        retry=retry_if_exception(is_retryable),
        stop=stop_never if give_up_after_s is None else stop_before_delay(give_up_after_s),
        wait=wait_random_exponential(multiplier=first_wait_s, max=longest_wait_s),
        sleep=asyncio.sleep,
        before_sleep=lambda state: _tell(what, state),
        reraise=True,
    )
    return await attempts(work)


def _tell(what: str, state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    _LOG.warning("retrying", what=what, attempt=state.attempt_number, error=type(error).__name__)
