"""What triage needs: time, entity and severity of alerts, snoozes, saved rules."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add columns and a table; what is there stays."""
    op.add_column("alerts", sa.Column("at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("alerts", sa.Column("entity", sa.String(200), nullable=True))
    op.add_column("alerts", sa.Column("excess", sa.Float, nullable=True))
    op.create_index("ix_alerts_excess", "alerts", ["excess"])
    op.add_column("verdicts", sa.Column("until", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "rules",
        sa.Column("id", _ID, primary_key=True, autoincrement=True),
        sa.Column("stream_id", _ID, sa.ForeignKey("streams.id", name="fk_rules_stream_id"), nullable=False),
        sa.Column("rule", sa.JSON, nullable=False),
        sa.Column("author", sa.String(128), nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_rules"),
    )
    op.create_index("ix_rules_stream_id", "rules", ["stream_id"])
