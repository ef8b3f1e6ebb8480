"""Blocking file work on threads, with its failures in the registry's words."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeVar

import structlog

from services.common.storage_failure import NO_ROOM, StorageFull
from services.registry.domain.failure import StoreUnavailable

_T = TypeVar("_T")
_LOG: Final = structlog.get_logger(part="artifacts")


async def in_thread(work: Callable[..., _T], *arguments: Any) -> _T:
    """Return what `work` returns. A cancellation waits for the thread: it must not write behind a successor's back."""
    future = asyncio.get_running_loop().run_in_executor(None, partial(_run, work, *arguments))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


def _run(work: Callable[..., _T], *arguments: Any) -> _T:
    with _translated():
        return work(*arguments)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        _LOG.error("artifact_store_failed", error=str(error))
        raise (StorageFull("registry") if error.errno in NO_ROOM else StoreUnavailable()) from error
