"""Read the history of models: parents, figures, decisions and collections."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from storage.postgres.schema import CollectionRow, ModelRow, PromotionRow


@dataclass(frozen=True, slots=True)
class LastDecision:
    """Describe the last decision on a model."""

    at: datetime
    promoted: bool
    forced: bool
    over: str | None
    """The active model of that time."""

    over_fingerprint: str | None


@dataclass(frozen=True, slots=True)
class ModelHistory:
    """Describe one model and its history."""

    name: str
    fingerprint: str
    state: str
    created: datetime
    parent: str | None
    """The name of the model that it was fine-tuned from."""

    parent_fingerprint: str | None
    before: Mapping[str, Mapping[str, float]]
    """By direction, the parent's figures on the held-out pairs."""

    figures: Mapping[str, Mapping[str, float]]
    """By direction, the figures of the model on them; both are empty for a pretrained model."""

    decided: LastDecision | None
    collections: Mapping[str, str]
    """State by collection name."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class CollectionHistory:
    """Describe one collection and its use."""

    name: str
    fingerprint: str
    state: str
    activated: datetime | None
    """When it became active last."""

    retired: datetime | None
    """When it stopped being active."""


@dataclass(frozen=True, slots=True)
class DecisionCheck:
    """Store one check of a promotion decision."""

    name: str
    passed: bool
    queries: int
    candidate: float
    active: float
    gain: float
    low: float | None
    high: float | None
    limit: float


@dataclass(frozen=True, slots=True)
class Decision:
    """Store one decision of the promotion gate."""

    id: int
    at: datetime
    candidate: str
    active: str | None
    """Both by name."""

    promoted: bool
    forced: bool
    checks: tuple[DecisionCheck, ...]


def models(session: Session) -> list[ModelHistory]:
    """Return all models, newest first."""
    rows = session.scalars(select(ModelRow).order_by(ModelRow.created.desc(), ModelRow.fingerprint)).all()
    names = {row.fingerprint: row.name for row in rows}
    states: dict[str, dict[str, str]] = defaultdict(dict)
    for one in session.scalars(select(CollectionRow).order_by(CollectionRow.name)):
        states[one.fingerprint][one.name] = one.state
    latest = select(PromotionRow).distinct(PromotionRow.candidate)
    newest_first = PromotionRow.candidate, PromotionRow.at.desc(), PromotionRow.id.desc()
    decided = {
        one.candidate: LastDecision(one.at, one.promoted, one.forced, names.get(one.active or ""), one.active)
        for one in session.scalars(latest.order_by(*newest_first))
    }
    return [
        ModelHistory(
            row.name,
            row.fingerprint,
            row.state,
            row.created,
            names.get(row.parent or ""),
            row.parent,
            row.training.get("before", {}),
            row.training.get("after", {}),
            decided.get(row.fingerprint),
            states.get(row.fingerprint, {}),
        )
        for row in rows
    ]


def collections(session: Session) -> list[CollectionHistory]:
    """Return all collections, the last activated first, never activated ones last."""
    latest = CollectionRow.activated.desc().nulls_last(), CollectionRow.name
    rows = session.scalars(select(CollectionRow).order_by(*latest))
    return [
        CollectionHistory(row.name, row.fingerprint, row.state, row.activated, row.retired) for row in rows
    ]


def decisions(session: Session, limit: int, *, before: int | None = None) -> list[Decision]:
    """Return the decisions of the promotion gate, newest first.

    Args:
        before: only those that were put on record before the one with this id.
    """
    candidate, active = aliased(ModelRow), aliased(ModelRow)
    found = (
        select(PromotionRow, candidate.name, active.name)
        .join(candidate, candidate.fingerprint == PromotionRow.candidate)
        .outerjoin(active, active.fingerprint == PromotionRow.active)
    )
    if before is not None:
        found = found.where(PromotionRow.id < before)
    rows = session.execute(found.order_by(PromotionRow.id.desc()).limit(limit)).tuples()
    return [
        Decision(row.id, row.at, name, over, row.promoted, row.forced, tuple(map(_check, row.checks)))
        for row, name, over in rows
    ]


def _check(data: Mapping[str, Any]) -> DecisionCheck:
    figure = data["difference"]
    return DecisionCheck(
        data["name"],
        data["passed"],
        data["queries"],
        data["candidate"],
        data["active"],
        figure["value"],
        figure["low"],
        figure["high"],
        data["limit"],
    )
