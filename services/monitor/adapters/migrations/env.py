"""Alembic's entry: runs migrations on the connection that the monitor gives it."""

from services.common.migration import run_migrations
from services.monitor.adapters.table import METADATA

run_migrations(METADATA)
