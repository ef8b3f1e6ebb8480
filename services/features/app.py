"""Puts the features service together."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from services.common.call import Binding
from services.common.server import Runtime
from services.features.servicer import feature_bindings
from services.features.settings import Settings


@asynccontextmanager
async def build(settings: Settings, runtime: Runtime[Settings]) -> AsyncIterator[Sequence[Binding]]:
    """Yield what the process serves; nothing has to be opened yet."""
    yield feature_bindings()
