"""Models and collections in Postgres. Functions take a Session and never commit: the caller does."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from storage.schema import CollectionRow, EvaluationRow, MarkRow, ModelRow


def activate_collection(session: Session, *, name: str, model: str, fingerprint: str, dim: int) -> None:
    """Put on record that searches go to collection `name`; whatever was active before is retired."""
    _retire(session, CollectionRow, CollectionRow.name != name)
    _retire(session, ModelRow, ModelRow.fingerprint != fingerprint)
    own = insert(ModelRow).values(fingerprint=fingerprint, name=model, dim=dim, state="active")
    session.execute(
        own.on_conflict_do_update(
            index_elements=[ModelRow.fingerprint], set_={"state": "active"}, where=ModelRow.state != "active"
        )
    )
    known = insert(CollectionRow).values(
        name=name, fingerprint=fingerprint, state="active", activated=func.now()
    )
    session.execute(
        known.on_conflict_do_update(
            index_elements=[CollectionRow.name],
            set_={"state": "active", "activated": func.now()},
            where=CollectionRow.state != "active",
        )
    )


def forget_marks(session: Session, collection: str) -> None:
    """Drop what is said of the points of `collection`. Call it before the collection is made anew."""
    session.execute(delete(MarkRow).where(MarkRow.collection == collection))


def marks_by_collection(session: Session) -> dict[str, int]:
    """Return how many points each collection should hold."""
    statement = select(MarkRow.collection, func.count()).group_by(MarkRow.collection)
    return dict(session.execute(statement.order_by(MarkRow.collection)).tuples().all())


@dataclass(frozen=True, slots=True)
class Known:
    """A collection, as Postgres has it."""

    name: str
    fingerprint: str
    state: str


def known_collections(session: Session) -> list[Known]:
    """Return all collections, in order of name."""
    rows = session.scalars(select(CollectionRow).order_by(CollectionRow.name))
    return [Known(row.name, row.fingerprint, row.state) for row in rows]


def active_collection(session: Session) -> str | None:
    """Return the name of the collection that searches go to, as Postgres has it."""
    return session.scalar(select(CollectionRow.name).where(CollectionRow.state == "active"))


def save_evaluation(
    session: Session,
    *,
    collection: str,
    dataset: str,
    direction: str,
    lang: str | None,
    figures: Mapping[str, float],
    queries: int,
    gallery: int,
) -> None:
    """Keep the figures of one direction, each with the sizes without which it means nothing."""
    for metric, value in figures.items():
        session.add(
            EvaluationRow(
                collection=collection,
                dataset=dataset,
                direction=direction,
                lang=lang,
                metric=metric,
                value=value,
                queries=queries,
                gallery=gallery,
            )
        )


def _retire(
    session: Session, table: type[CollectionRow] | type[ModelRow], others: ColumnElement[bool]
) -> None:
    """Retire the active rows of `table` among `others`."""
    session.execute(update(table).where(table.state == "active", others).values(state="retired"))
