"""The tables of the newest version. `migrations` says how a database gets there; a test compares the two."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect


class Moment(sa.types.TypeDecorator[datetime]):
    """A time in UTC; SQLite keeps no zone, so it is put back on reading."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse times without a zone: nobody could tell what they mean."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a stored time has a zone; got {value}")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give every time its zone."""
        return None if value is None else value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)
_Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _id() -> sa.Column[int]:
    return sa.Column("id", _Id, primary_key=True, autoincrement=True)


def _to(table: str, *, nullable: bool = False) -> sa.Column[int]:
    name = f"{table[:-1]}_id"
    return sa.Column(name, _Id, sa.ForeignKey(f"{table}.id"), nullable=nullable)


def _created() -> sa.Column[datetime]:
    return sa.Column("created", Moment, nullable=False)


def _text(name: str, length: int = 64, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.String(length), nullable=nullable)


# One row. Whoever commits files holds it shared, whoever deletes files holds it alone.
workspace = sa.Table("workspace", metadata, _id(), _created())

runs = sa.Table(
    "runs",
    metadata,
    _id(),
    _text("kind", 32),
    _text("subject", 160),
    _text("status", 16),
    _text("lock", 64),
    sa.Column("started", Moment, nullable=False),
    sa.Column("ended", Moment),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("result", sa.JSON),
    sa.Column("error", sa.Text),
    sa.Index(None, "status"),
)

sources = sa.Table(
    "sources",
    metadata,
    _id(),
    _text("name"),
    sa.Column("spec", sa.JSON, nullable=False),
    _created(),
    sa.UniqueConstraint("name"),
)

models = sa.Table(
    "models",
    metadata,
    _id(),
    _text("name"),
    sa.Column("version", sa.Integer, nullable=False),
    _text("folder", 200, nullable=True),  # none: retired by gc
    _text("fingerprint"),
    _text("config_hash"),
    sa.Column("metrics", sa.JSON, nullable=False),
    _to("sources", nullable=True),
    _to("runs", nullable=True),
    _created(),
    sa.UniqueConstraint("name", "version"),
    sa.UniqueConstraint("name", "fingerprint", "config_hash"),
)

aliases = sa.Table(
    "aliases",
    metadata,
    _id(),
    _text("name"),
    _text("alias", 32),
    _to("models"),
    sa.Column("changed", Moment, nullable=False),
    sa.UniqueConstraint("name", "alias"),
)

# A source as one model scores it. `revision` grows by one with every part that is committed. `state` is what the model of a
# series needs to go on, made by the version `state_model_id`.
streams = sa.Table(
    "streams",
    metadata,
    _id(),
    _to("sources"),
    _text("model"),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("watermark", sa.JSON),
    sa.Column("rows", sa.BigInteger, nullable=False),
    _created(),
    sa.Column("state", sa.LargeBinary),
    sa.Column("state_model_id", _Id, sa.ForeignKey("models.id")),
    sa.UniqueConstraint("source_id", "model"),
)

partitions = sa.Table(
    "partitions",
    metadata,
    _id(),
    _to("streams"),
    _text("unit", 400),
    sa.Column("part", sa.Integer, nullable=False),
    sa.Column("last", sa.Boolean, nullable=False),  # the unit ends here
    sa.Column("identity", sa.JSON),  # of the file that the rows came from
    _text("file", 200, nullable=True),  # none: no rows, or past its retention
    _text("token", 32),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("flagged", sa.BigInteger, nullable=False),
    _to("models"),
    _to("runs"),
    _created(),
    sa.UniqueConstraint("stream_id", "unit", "part"),
)

alerts = sa.Table(
    "alerts",
    metadata,
    _id(),
    _to("partitions"),
    sa.Column("row", sa.BigInteger, nullable=False),
    sa.Column("score", sa.Float, nullable=False),
    sa.Column("p_value", sa.Float, nullable=False),
    sa.Column("reasons", sa.JSON, nullable=False),
    sa.Column("values", sa.JSON, nullable=False),
    sa.Column("at", Moment),  # the row's own time, if it has one
    _text("entity", 200, nullable=True),  # what the row is about: a machine, a shop
    sa.Column("excess", sa.Float),  # score / highest score of a calibration row; comparable between models
    _created(),
    sa.Column("kind", sa.String(16), nullable=False, server_default="row"),  # or event, silent: something that lasts
    sa.Column("ended", Moment),  # of an event: its last time so far
    sa.Column("open", sa.Boolean, nullable=False, server_default=sa.false()),  # later parts may change it
    sa.Column("first_place", sa.BigInteger),  # of an event: where on the model's grid of times it lies
    sa.Column("last_place", sa.BigInteger),
    sa.UniqueConstraint("partition_id", "row"),
    sa.Index(None, "excess"),
    sa.Index(None, "open"),
)

# Append-only: the database itself refuses to change or delete one.
verdicts = sa.Table(
    "verdicts",
    metadata,
    _id(),
    _to("alerts"),
    _text("verdict", 16),
    _text("author", 128),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("until", Moment),  # of a snooze
    _created(),
    sa.Index(None, "alert_id"),
)

# Rules that people saved for a stream; the latest counts, an empty one means "as the job says".
rules = sa.Table(
    "rules",
    metadata,
    _id(),
    _to("streams"),
    sa.Column("rule", sa.JSON, nullable=False),
    _text("author", 128),
    sa.Column("note", sa.Text, nullable=False),
    _created(),
    sa.Index(None, "stream_id"),
)

synthetics = sa.Table(
    "synthetics",
    metadata,
    _id(),
    _to("models"),
    _text("config_hash"),
    _text("folder", 200, nullable=True),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("report", sa.JSON, nullable=False),
    _to("runs", nullable=True),
    _created(),
    sa.UniqueConstraint("model_id", "config_hash"),
)

events = sa.Table(
    "events",
    metadata,
    _id(),
    _text("kind", 48),
    _text("subject", 400),
    _text("severity", 16),
    _text("key"),  # the same finding is told once
    sa.Column("detail", sa.JSON, nullable=False),
    _created(),
    sa.UniqueConstraint("key"),
)

reports = sa.Table(
    "reports",
    metadata,
    _id(),
    _to("streams"),
    _to("runs", nullable=True),
    _text("verdict", 32),
    sa.Column("detail", sa.JSON, nullable=False),
    _created(),
    sa.Index(None, "stream_id"),
)
