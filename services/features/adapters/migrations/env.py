"""Alembic's entry: runs migrations on the connection that the features service gives it."""

from services.common.migration import run_migrations
from services.features.adapters.table import METADATA

run_migrations(METADATA)
