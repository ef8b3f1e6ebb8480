"""Alembic's entry: runs migrations on the connection that the registry gives it."""

from services.common.migration import run_migrations
from services.registry.adapters.table import METADATA

run_migrations(METADATA)
