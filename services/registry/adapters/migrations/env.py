"""Alembic's entry: runs migrations on the connection that the registry gives it."""

from alembic import context

from services.registry.adapters.table import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
with context.begin_transaction():
    context.run_migrations()
