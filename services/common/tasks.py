"""Background tasks that are neither garbage-collected in flight nor fail in silence."""

import asyncio
from collections.abc import Coroutine
from contextvars import copy_context
from typing import Any, Final, TypeVar

import structlog

from services.common.call import CURRENT_CALL

_T = TypeVar("_T")
_LOG: Final = structlog.get_logger(part="tasks")
# asyncio keeps only weak references to tasks.
_RUNNING: Final[set[asyncio.Task[Any]]] = set()


def spawn(work: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
    """Run `work` as a task, keep it alive, and log its failure once under `name`.

    SystemExit and KeyboardInterrupt become a failure of the task like any other: raised out of a task they would end
    the event loop, and with it every other call. The work outlives the call that starts it, so it does not see that
    call: its deadline and its ids are not the work's.
    """
    context = copy_context()
    context.run(CURRENT_CALL.set, None)
    task = asyncio.create_task(_contain(work), name=name, context=context)  # noqa: TID251 - this is the one place
    _RUNNING.add(task)
    task.add_done_callback(_finish)
    # Cancelled before its first step, it would complain that nobody ever awaited it.
    task.add_done_callback(lambda _task: work.close())
    return task


async def _contain(work: Coroutine[Any, Any, _T]) -> _T:
    try:
        return await work
    except (SystemExit, KeyboardInterrupt) as error:
        raise RuntimeError(f"background work tried to end the process: {error!r}") from error


def _finish(task: asyncio.Task[Any]) -> None:
    _RUNNING.discard(task)
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        _LOG.error("task_failed", task=task.get_name(), exc_info=error)


async def to_the_end(work: Coroutine[Any, Any, _T]) -> _T:
    """Run short work to its end however often the caller is cancelled meanwhile; the cancellation goes on afterwards.

    A statement that is cut in the middle costs its database connection.
    """
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        # Nobody is left to hear of a failure. Unasked it would be reported when it is collected, at any moment.
        if not task.cancelled():
            task.exception()
        raise asyncio.CancelledError
    return task.result()
