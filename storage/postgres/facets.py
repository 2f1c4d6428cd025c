"""List the sources and metadata values that searches can filter by."""

from collections.abc import Iterable

from sqlalchemy import cast, column, func, select, true
from sqlalchemy.dialects.postgresql import JSONB, JSONPATH
from sqlalchemy.orm import Session

from storage.postgres.schema import ItemRow

MOST_SOURCES = 50
SAMPLE = 1000
"""Size of the sample of items. Ids are hashes, so the first ones are a fair sample."""

VALUES_A_FIELD = 8
LONGEST_VALUE = 60
MOST_FIELDS = 10_000
SCALARS = ("string", "number", "boolean")


def sources(session: Session) -> list[str]:
    """Return up to `MOST_SOURCES` sources with living items, in order.

    It steps from name to name through their index, instead of reading all items.
    """
    names = select(func.min(ItemRow.source).label("source")).cte("names", recursive=True)
    following = select(func.min(ItemRow.source)).where(ItemRow.source > names.c.source).scalar_subquery()
    names = names.union_all(select(following).where(names.c.source.is_not(None)))
    alive = select(ItemRow.id).where(ItemRow.source == names.c.source, ItemRow.deleted.is_(None)).exists()
    found = select(names.c.source).where(names.c.source.is_not(None), alive).limit(MOST_SOURCES)
    return sorted(session.scalars(found))


def unknown_fields(session: Session, names: Iterable[str]) -> list[str]:
    """Return the metadata fields that no living item has; every item counts."""
    alive = select(ItemRow.id).where(ItemRow.deleted.is_(None))
    return [
        name for name in names if session.scalar(alive.where(ItemRow.meta.has_key(name)).limit(1)) is None
    ]


def field_names(session: Session) -> list[str]:
    """Return up to `MOST_FIELDS` names of metadata fields of living items."""
    names = select(func.jsonb_object_keys(ItemRow.meta)).where(ItemRow.deleted.is_(None)).distinct()
    return sorted(session.scalars(names.limit(MOST_FIELDS)))


def metadata(session: Session) -> list[tuple[str, str]]:
    """Return the most frequent values of each metadata field, from a sample.

    The elements of a list count one by one. Values that are no string, number or boolean, or are long,
    are left out.
    """
    sample = (
        select(ItemRow.meta.label("metadata"))
        .where(ItemRow.deleted.is_(None))
        .order_by(ItemRow.id)
        .limit(SAMPLE)
        .subquery("sample")
    )
    fields = func.jsonb_each(sample.c.metadata).table_valued("key", column("value", JSONB)).alias("fields")
    own_parts = func.jsonb_path_query(fields.c.value, cast("$[*]", JSONPATH))
    parts = own_parts.table_valued(column("part", JSONB)).render_derived("parts")
    value = parts.c.part[()].astext
    many = func.count()
    rank = func.row_number().over(partition_by=fields.c.key, order_by=(many.desc(), value))
    counted = (
        select(fields.c.key, value.label("value"), rank.label("rank"))
        .select_from(sample.join(fields, true()).join(parts, true()))
        .where(func.jsonb_typeof(parts.c.part).in_(SCALARS), func.length(value) <= LONGEST_VALUE)
        .group_by(fields.c.key, value)
        .subquery("counted")
    )
    frequent = select(counted.c.key, counted.c.value).where(counted.c.rank <= VALUES_A_FIELD)
    rows = session.execute(frequent.order_by(counted.c.key, counted.c.rank)).tuples()
    return [(key, value) for key, value in rows]
