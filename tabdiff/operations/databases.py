"""Rows of a database table that are new. Names come from the database's own list, values are bound; no SQL is taken from users."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection, make_url

from tabdiff.errors import SourceError
from tabdiff.operations.new_rows import GrowingReader, Piece
from tabdiff.store.names import redact, resolve
from tabdiff.store.spec import SourceSpec


@dataclass
class TableReader(GrowingReader):
    """A table or view whose rows are told apart by a column that only grows."""

    def __post_init__(self) -> None:
        with _connected(self.spec) as connection:
            self.table, self.column = _reflect(connection, self.spec)
            kind = _kind(connection, self.column, self.spec)
            self._growing(f"table {self.spec.table}", self.column.name, kind, "Give it the type of before.")
            highest = connection.execute(sa.select(sa.func.max(self.column))).scalar()
            without = sa.select(sa.func.count()).select_from(self.table).where(self.column.is_(None))
            self._tell_unplaced(str(self.spec.table), int(connection.execute(without).scalar_one()))
        self._upto = None if highest is None else _earlier(highest, self.spec.lateness)

    def next(self) -> Piece | None:
        """The next rows above the watermark, up to a whole value."""
        if self._upto is None:
            return None
        with _connected(self.spec) as connection:
            new = [self.column <= self._upto]
            if self._mark is not None:
                new.append(self.column > _decode(self._mark))
            first = sa.select(self.column.label("value")).where(*new).order_by(self.column).limit(self.rows).subquery()
            end = connection.execute(sa.select(sa.func.max(first.c.value))).scalar()
            if end is None:
                return None
            frame = _frame(connection, sa.select(self.table).where(*new, self.column <= end).order_by(self.column))
        return self._piece(frame, _encode(end))

    def recent(self, after: Sequence[Any]) -> pl.DataFrame:
        """Rows not far below the watermark."""
        with _connected(self.spec) as connection:
            if self._mark is None:
                return _frame(connection, sa.select(self.table).where(sa.false()))
            mark = _decode(self._mark)
            low = max(
                [_earlier(mark, self.spec.late_within or 0.0), *(_decode({**self._mark, "value": v}) for v in after)]
            )
            between = sa.and_(self.column > low, self.column <= mark)
            return _frame(connection, sa.select(self.table).where(between).order_by(self.column))

    def encoded(self, value: Any) -> int | str:
        """Integers, or ISO 8601."""
        return _encode(value)

    def _count_below(self, value: Any) -> int:
        mark = {"kind": self.kind, "value": value}
        count = sa.select(sa.func.count()).select_from(self.table).where(self.column <= _decode(mark))
        with _connected(self.spec) as connection:
            return int(connection.execute(count).scalar_one())


def newest_of_table(spec: SourceSpec, limit: int) -> pl.DataFrame:
    """The rows with the largest values of the column that grows, in its order.

    Raises:
        SourceError: the database is out of reach, or there are no rows.
    """
    with _connected(spec) as connection:
        table, column = _reflect(connection, spec)
        query = sa.select(table).where(column.is_not(None)).order_by(column.desc()).limit(limit)
        frame = _frame(connection, query)
    if not frame.height:
        raise SourceError(f"table {spec.table}: there are no rows yet.")
    return frame.reverse()


@contextmanager
def _connected(spec: SourceSpec) -> Iterator[Connection]:
    """A connection in one transaction; drivers quote URLs, so their messages are passed on without them."""
    url = resolve(spec.location)
    try:
        parsed = make_url(url)
    except sa.exc.ArgumentError:
        raise SourceError(
            f"source in table {spec.table}: {spec.location!r} must lead to a database URL; it does not."
        ) from None
    if parsed.get_backend_name() in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    elif parsed.get_backend_name() != "sqlite":
        raise SourceError(
            f"a table is read from SQLite or PostgreSQL; got {parsed.get_backend_name()}. Export the rows as Parquet files."
        )
    engine = sa.create_engine(parsed, poolclass=sa.NullPool)
    try:
        with engine.connect() as connection, connection.begin():
            yield connection
    except sa.exc.SQLAlchemyError as error:
        reason = redact(str(getattr(error, "orig", None) or error), url)
        raise SourceError(f"table {spec.table}: cannot be read ({reason}). Check the address and the rights.") from None
    finally:
        engine.dispose()


def _reflect(connection: Connection, spec: SourceSpec) -> tuple[sa.Table, sa.Column[Any]]:
    schema, _, name = (spec.table or "").rpartition(".")
    inspector = sa.inspect(connection)
    there = [*inspector.get_table_names(schema or None), *inspector.get_view_names(schema or None)]
    if name not in there or (schema and schema not in inspector.get_schema_names()):
        raise SourceError(
            f"there is no table or view {spec.table!r} in the database; it has {there[:10]}. Check the name."
        )
    table = sa.Table(name, sa.MetaData(), schema=schema or None, autoload_with=connection)
    if str(spec.column) not in table.columns:
        raise SourceError(
            f"table {spec.table} has no column {spec.column!r}; it has {[c.name for c in table.columns][:20]}."
        )
    return table, table.columns[str(spec.column)]


def _kind(connection: Connection, column: sa.Column[Any], spec: SourceSpec) -> str:
    if isinstance(column.type, sa.Integer):
        return "int"
    text_only = connection.dialect.name == "sqlite"  # it has no times, only texts in whatever form
    if isinstance(column.type, sa.DateTime) and not text_only:
        return "datetime"
    if isinstance(column.type, sa.Date) and not text_only:
        return "date"
    raise SourceError(
        f"table {spec.table}: column {column.name!r} must be integer, date or timestamp (in SQLite: integer) to tell "
        f"new rows; found {column.type}. "
        "Choose another column, or make a view."
    )


def _encode(value: Any) -> int | str:
    return value if isinstance(value, int) else value.isoformat()


def _decode(mark: dict[str, Any]) -> Any:
    if mark["kind"] == "int":
        return mark["value"]
    return datetime.fromisoformat(mark["value"]) if mark["kind"] == "datetime" else date.fromisoformat(mark["value"])


def _earlier(value: Any, lateness: float) -> Any:
    if isinstance(value, int):
        return value - int(lateness)
    return value - (timedelta(seconds=lateness) if isinstance(value, datetime) else timedelta(days=int(lateness)))


def _frame(connection: Connection, query: sa.Select[Any]) -> pl.DataFrame:
    result = connection.execute(query)
    names = list(result.keys())
    rows = [tuple(_plain(value) for value in row) for row in result]
    return pl.DataFrame(rows, schema=names, orient="row", infer_schema_length=None, strict=False)


def _plain(value: Any) -> Any:
    """Values that polars knows; numerics of a database become floats, all else its text."""
    if value is None or isinstance(value, bool | int | float | str | datetime | date):
        return value
    from decimal import Decimal

    return float(value) if isinstance(value, Decimal) else str(value)
