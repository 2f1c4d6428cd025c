"""Name the fields of `--where` that no item has."""

from collections.abc import Iterator
from difflib import get_close_matches

import click
from sqlalchemy.orm import Session, sessionmaker

from storage.postgres import facets
from storage.records import Where

OPTIONS = {"source": "--source NAME", "key": "KEY as an argument"}
"""How `delete` takes the two conditions that a search takes as fields."""

MOST_SHOWN = 8


def warn_of_unknown_fields(
    sessions: sessionmaker[Session], where: Where, *, fixed: tuple[str, ...] = ()
) -> None:
    """Name on standard error each field that no item has.

    Call it where nothing was found: it reads every item.

    Args:
        where: the conditions of `--where`.
        fixed: fields that every item has beside its metadata.
    """
    with sessions() as session:
        for line in _lines(session, [name for name in where if name not in fixed], fixed):
            click.echo(line, err=True)


def _lines(session: Session, names: list[str], fixed: tuple[str, ...]) -> Iterator[str]:
    unknown = facets.unknown_fields(session, names)
    known = [*facets.field_names(session), *fixed] if unknown else []
    for name in unknown:
        yield f"No item has the field {name!r} of --where; {_remedy(name, known, fixed)}"


def _remedy(name: str, known: list[str], fixed: tuple[str, ...]) -> str:
    if name in OPTIONS and name not in fixed:
        return f"this command takes {OPTIONS[name]}"
    if near := get_close_matches(name, known):
        return f"did you mean {' or '.join(near)}?"
    if not known:
        return "the items have no metadata"
    more = len(known) - MOST_SHOWN
    return f"fields: {', '.join(known[:MOST_SHOWN])}{f' and {more:,} others' if more > 0 else ''}"
