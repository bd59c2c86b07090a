"""Sources, models, runs, watermarks, score partitions, alerts, verdicts, synthetic sets, events."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_MOMENT = sa.DateTime(timezone=True)


def _id() -> sa.Column[Any]:
    return sa.Column("id", _ID, primary_key=True, autoincrement=True)


def _text(name: str, length: int = 64, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.String(length), nullable=nullable)


def _json(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.JSON, nullable=nullable)


def _number(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger, nullable=False)


def _to(table: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(f"{table[:-1]}_id", _ID, nullable=nullable)


def _moment(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, _MOMENT, nullable=nullable)


def _create(
    name: str, *columns: sa.Column[Any], unique: tuple[tuple[str, ...], ...] = (), to: tuple[str, ...] = ()
) -> None:
    op.create_table(
        name,
        _id(),
        *columns,
        sa.PrimaryKeyConstraint("id", name=f"pk_{name}"),
        *(sa.ForeignKeyConstraint([f"{t[:-1]}_id"], [f"{t}.id"], name=f"fk_{name}_{t[:-1]}_id") for t in to),
        *(sa.UniqueConstraint(*names, name=f"uq_{name}_{'_'.join(names)}") for names in unique),
    )


def upgrade() -> None:
    """Make the tables, and have the database keep verdicts as they are."""
    _create("workspace", _moment("created"))
    _create(
        "runs",
        *(_text("kind", 32), _text("subject", 160), _text("status", 16), _text("lock")),
        *(_moment("started"), _moment("ended", nullable=True), _number("rows"), _json("result", nullable=True)),
        sa.Column("error", sa.Text, nullable=True),
    )
    op.create_index("ix_runs_status", "runs", ["status"])
    _create("sources", _text("name"), _json("spec"), _moment("created"), unique=(("name",),))
    _create(
        "models",
        *(_text("name"), sa.Column("version", sa.Integer, nullable=False), _text("folder", 200, nullable=True)),
        *(_text("fingerprint"), _text("config_hash"), _json("metrics")),
        *(_to("sources", nullable=True), _to("runs", nullable=True), _moment("created")),
        unique=(("name", "version"), ("name", "fingerprint", "config_hash")),
        to=("sources", "runs"),
    )
    _create(
        "aliases",
        *(_text("name"), _text("alias", 32), _to("models"), _moment("changed")),
        unique=(("name", "alias"),),
        to=("models",),
    )
    _create(
        "streams",
        *(_to("sources"), _text("model"), _number("revision"), _json("watermark", nullable=True)),
        *(_number("rows"), _moment("created")),
        unique=(("source_id", "model"),),
        to=("sources",),
    )
    _create(
        "partitions",
        *(_to("streams"), _text("unit", 400), sa.Column("part", sa.Integer, nullable=False)),
        *(sa.Column("last", sa.Boolean, nullable=False), _json("identity", nullable=True)),
        *(_text("file", 200, nullable=True), _text("token", 32), _number("rows"), _number("flagged")),
        *(_to("models"), _to("runs"), _moment("created")),
        unique=(("stream_id", "unit", "part"),),
        to=("streams", "models", "runs"),
    )
    _create(
        "alerts",
        *(_to("partitions"), _number("row"), sa.Column("score", sa.Float, nullable=False)),
        *(sa.Column("p_value", sa.Float, nullable=False), _json("reasons"), _json("values"), _moment("created")),
        unique=(("partition_id", "row"),),
        to=("partitions",),
    )
    _create(
        "verdicts",
        *(_to("alerts"), _text("verdict", 16), _text("author", 128)),
        *(sa.Column("note", sa.Text, nullable=False), _moment("created")),
        to=("alerts",),
    )
    op.create_index("ix_verdicts_alert_id", "verdicts", ["alert_id"])
    _create(
        "synthetics",
        *(_to("models"), _text("config_hash"), _text("folder", 200, nullable=True), _number("rows"), _json("report")),
        *(_to("runs", nullable=True), _moment("created")),
        unique=(("model_id", "config_hash"),),
        to=("models", "runs"),
    )
    _create(
        "events",
        *(_text("kind", 48), _text("subject", 400), _text("severity", 16), _text("key"), _json("detail")),
        _moment("created"),
        unique=(("key",),),
    )
    for statement in _append_only(op.get_bind().dialect.name):
        op.execute(statement)


def _append_only(dialect: str) -> list[str]:
    if dialect == "sqlite":
        return [
            f"CREATE TRIGGER verdicts_no_{verb} BEFORE {verb} ON verdicts "
            "BEGIN SELECT RAISE(ABORT, 'verdicts are append-only'); END"
            for verb in ("UPDATE", "DELETE")
        ]
    return [
        "CREATE FUNCTION verdicts_are_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'verdicts are append-only'; END $$",
        "CREATE TRIGGER verdicts_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON verdicts "
        "FOR EACH STATEMENT EXECUTE FUNCTION verdicts_are_append_only()",
    ]
