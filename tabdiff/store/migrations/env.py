"""Run by Alembic: migrate inside the transaction that the caller has opened."""

from __future__ import annotations

from alembic import context

from tabdiff.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=False,  # the caller commits, or nothing has happened
    compare_type=True,
)
context.run_migrations()
