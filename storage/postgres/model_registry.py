"""Store models and collections in Postgres; the caller commits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from storage.postgres.schema import CollectionRow, EvaluationRow, MarkRow, ModelRow, PromotionRow


@dataclass(frozen=True, slots=True)
class KnownCollection:
    """Describe a collection on record."""

    name: str
    fingerprint: str
    state: str


def activate_collection(session: Session, *, name: str, model: str, fingerprint: str, dim: int) -> None:
    """Record the collection that searches use, and retire the previous one."""
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


def begin_collection(session: Session, *, name: str, fingerprint: str) -> None:
    """Record that a collection is being built."""
    row = insert(CollectionRow).values(name=name, fingerprint=fingerprint, state="building")
    session.execute(
        row.on_conflict_do_update(
            index_elements=[CollectionRow.name],
            set_={"state": "building", "retired": None},
            where=CollectionRow.state == "retired",
        )
    )


def last_retired(session: Session) -> list[KnownCollection]:
    """Return the formerly active collections, the last retired first."""
    retired = CollectionRow.state == "retired", CollectionRow.activated.is_not(None)
    rows = session.scalars(
        select(CollectionRow).where(*retired).order_by(CollectionRow.retired.desc(), CollectionRow.name)
    )
    return [KnownCollection(row.name, row.fingerprint, row.state) for row in rows]


def disused(session: Session, days: float) -> list[str]:
    """Return collections retired or abandoned more than `days` days ago."""
    since = func.coalesce(CollectionRow.retired, CollectionRow.created)
    old = CollectionRow.state != "active", since < func.now() - timedelta(days=days)
    return list(session.scalars(select(CollectionRow.name).where(*old).order_by(CollectionRow.name)))


def forget_collection(session: Session, name: str) -> None:
    """Delete the record of a collection.

    Call it after the collection is removed from Qdrant.
    """
    forget_marks(session, name)
    session.execute(delete(CollectionRow).where(CollectionRow.name == name))


def save_decision(
    session: Session,
    *,
    candidate: str,
    active: str | None,
    promoted: bool,
    forced: bool,
    checks: Sequence[Mapping[str, Any]],
) -> None:
    """Record a promotion decision and its checks."""
    session.add(
        PromotionRow(
            candidate=candidate, active=active, promoted=promoted, forced=forced, checks=[*map(dict, checks)]
        )
    )


def is_promoted(session: Session, fingerprint: str, *, over: str) -> bool:
    """Whether the last decision promoted this model over `over`."""
    latest = select(PromotionRow.promoted, PromotionRow.active).where(PromotionRow.candidate == fingerprint)
    row = session.execute(latest.order_by(PromotionRow.at.desc(), PromotionRow.id.desc()).limit(1)).first()
    return row is not None and row.promoted and row.active == over


def forget_marks(session: Session, collection: str) -> None:
    """Delete the embedding states of a collection.

    Call it before the collection is created again.
    """
    session.execute(delete(MarkRow).where(MarkRow.collection == collection))


def marks_by_collection(session: Session) -> dict[str, int]:
    """Return the expected number of points of each collection."""
    statement = select(MarkRow.collection, func.count()).group_by(MarkRow.collection)
    return dict(session.execute(statement.order_by(MarkRow.collection)).tuples().all())


def known_collections(session: Session) -> list[KnownCollection]:
    """Return all collections on record, by name."""
    rows = session.scalars(select(CollectionRow).order_by(CollectionRow.name))
    return [KnownCollection(row.name, row.fingerprint, row.state) for row in rows]


def models_of_collections(session: Session) -> list[str]:
    """Return the names of the models with collections, in order."""
    used = select(CollectionRow.fingerprint)
    return list(
        session.scalars(select(ModelRow.name).where(ModelRow.fingerprint.in_(used)).order_by(ModelRow.name))
    )


def active_collection(session: Session) -> str | None:
    """Return the name of the active collection on record."""
    return session.scalar(select(CollectionRow.name).where(CollectionRow.state == "active"))


@dataclass(frozen=True, slots=True)
class Model:
    """Describe a model on record."""

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
    """Record a model as a candidate, unless it is known."""
    row = insert(ModelRow).values(
        fingerprint=fingerprint,
        name=name,
        dim=dim,
        state="candidate",
        parent=parent,
        training=dict(training),
    )
    session.execute(row.on_conflict_do_nothing(index_elements=[ModelRow.fingerprint]))


def lineage(session: Session, fingerprint: str) -> list[Model]:
    """Return a model and its ancestors, itself first; empty if unknown."""
    found: list[Model] = []
    row = session.get(ModelRow, fingerprint)
    while row is not None:
        found.append(_model(row))
        row = None if row.parent is None else session.get(ModelRow, row.parent)
    return found


def model_named(session: Session, name: str) -> Model | None:
    """Return the latest model with this name."""
    latest = select(ModelRow).where(ModelRow.name == name).order_by(ModelRow.created.desc()).limit(1)
    row = session.scalar(latest)
    if row is None:
        return None
    return _model(row)


def _model(row: ModelRow) -> Model:
    return Model(row.fingerprint, row.name, row.dim, row.state, row.parent, row.training)


def save_evaluation(
    session: Session,
    *,
    model: str,
    collection: str | None,
    dataset: str,
    direction: str,
    lang: str | None,
    part: str | None,
    figures: Mapping[str, Mapping[str, float | None]],
    queries: int,
    gallery: int,
) -> None:
    """Record the figures of one direction with its sample sizes.

    Args:
        lang: the requested languages of the captions; None for the embedded ones.
        part: of the queries, such as `kind=fruit`; None for all of them.
        figures: by metric its value, and the bounds low and high of its interval.
    """
    for metric, figure in figures.items():
        session.add(
            EvaluationRow(
                model=model,
                collection=collection,
                dataset=dataset,
                direction=direction,
                lang=lang,
                part=part,
                metric=metric,
                queries=queries,
                gallery=gallery,
                **figure,
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
