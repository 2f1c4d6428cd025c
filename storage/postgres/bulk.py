"""Send many rows in one statement of constant shape.

The statement is compiled and planned once, whatever the number of rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, Table, any_, column, func, literal, select
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import InstrumentedAttribute


def from_rows(table: Table, rows: Sequence[Mapping[str, Any]]) -> Select[Any]:
    """Return a query over `rows`, to insert from.

    They are sent as one JSON document.

    Args:
        table: has the columns that each row names, all of them the same ones, with their types.
        rows: one or more; values as JSON has them, a UUID as a string.
    """
    columns = [column(name, table.c[name].type) for name in rows[0]]
    document = func.jsonb_to_recordset(literal(list(rows), JSONB))
    named = document.table_valued(*columns).render_derived(name="given", with_types=True)
    return select(*(named.c[name] for name in rows[0]))


def among(attribute: InstrumentedAttribute[Any], values: Iterable[object]) -> ColumnElement[bool]:
    """Return the condition that an attribute has one of `values`.

    They are sent as one array.
    """
    return attribute == any_(literal(list(values), ARRAY(attribute.type)))
