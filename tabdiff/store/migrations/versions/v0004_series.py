"""What series need: the state of a stream, and alerts that last and are told of again while they do."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns; what is there stays."""
    op.add_column("streams", sa.Column("state", sa.LargeBinary, nullable=True))
    # Written out, as SQLite takes a foreign key only together with its column.
    kind = "INTEGER" if op.get_bind().dialect.name == "sqlite" else "BIGINT"
    op.execute(
        f"ALTER TABLE streams ADD COLUMN state_model_id {kind} "
        "CONSTRAINT fk_streams_state_model_id REFERENCES models (id)"
    )
    op.add_column("alerts", sa.Column("kind", sa.String(16), nullable=False, server_default="row"))
    op.add_column("alerts", sa.Column("ended", sa.DateTime(timezone=True), nullable=True))
    op.add_column("alerts", sa.Column("open", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("alerts", sa.Column("first_place", sa.BigInteger, nullable=True))
    op.add_column("alerts", sa.Column("last_place", sa.BigInteger, nullable=True))
    op.create_index("ix_alerts_open", "alerts", ["open"])
