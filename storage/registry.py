"""Models and collections in Postgres. Functions take a Session and never commit: the caller does."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

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
            set_={"state": "active", "activated": func.now(), "retired": None},
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


@dataclass(frozen=True, slots=True)
class Model:
    """A model, as Postgres has it."""

    fingerprint: str
    name: str
    dim: int
    state: str
    parent: str | None
    training: Mapping[str, Any]


def save_model(
    session: Session,
    *,
    fingerprint: str,
    name: str,
    dim: int,
    parent: str | None = None,
    training: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Put a model on record as a candidate, unless it is known already."""
    row = insert(ModelRow).values(
        fingerprint=fingerprint,
        name=name,
        dim=dim,
        state="candidate",
        parent=parent,
        training=dict(training),
    )
    session.execute(row.on_conflict_do_nothing(index_elements=[ModelRow.fingerprint]))


def model_named(session: Session, name: str) -> Model | None:
    """Return the model that was put on record last under `name`."""
    latest = select(ModelRow).where(ModelRow.name == name).order_by(ModelRow.created.desc()).limit(1)
    row = session.scalar(latest)
    if row is None:
        return None
    return Model(row.fingerprint, row.name, row.dim, row.state, row.parent, row.training)


def save_evaluation(
    session: Session,
    *,
    model: str,
    collection: str | None,
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
                model=model,
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
    values: dict[str, object] = {"state": "retired"}
    if table is CollectionRow:
        values["retired"] = func.now()
    session.execute(update(table).where(table.state == "active", others).values(values))
