"""Reports of the monitor."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "reports",
        sa.Column("id", _ID, primary_key=True, autoincrement=True),
        sa.Column("stream_id", _ID, sa.ForeignKey("streams.id", name="fk_reports_stream_id"), nullable=False),
        sa.Column("run_id", _ID, sa.ForeignKey("runs.id", name="fk_reports_run_id"), nullable=True),
        sa.Column("verdict", sa.String(32), nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_reports"),
    )
    op.create_index("ix_reports_stream_id", "reports", ["stream_id"])
