"""What is on record of each model: where it comes from, how good it is, what was decided, where it is."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from storage.schema import CollectionRow, ModelRow, PromotionRow


@dataclass(frozen=True, slots=True)
class Decided:
    """The last decision on a model."""

    at: datetime
    promoted: bool
    forced: bool
    over: str | None
    """The model that was active then."""


@dataclass(frozen=True, slots=True)
class Life:
    """One model."""

    name: str
    fingerprint: str
    state: str
    created: datetime
    parent: str | None
    """The name of the model that it was fine-tuned from."""

    figures: Mapping[str, Mapping[str, float]]
    """By direction, those of the held-out pairs after its training; empty for a given model."""

    decided: Decided | None
    collections: Mapping[str, str]
    """By name their state."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def lives(session: Session) -> list[Life]:
    """Return all models, the newest first."""
    rows = session.scalars(select(ModelRow).order_by(ModelRow.created.desc(), ModelRow.fingerprint)).all()
    names = {row.fingerprint: row.name for row in rows}
    collections: dict[str, dict[str, str]] = defaultdict(dict)
    for one in session.scalars(select(CollectionRow).order_by(CollectionRow.name)):
        collections[one.fingerprint][one.name] = one.state
    latest = select(PromotionRow).distinct(PromotionRow.candidate)
    newest_first = PromotionRow.candidate, PromotionRow.at.desc(), PromotionRow.id.desc()
    decided = {
        one.candidate: Decided(one.at, one.promoted, one.forced, names.get(one.active or ""))
        for one in session.scalars(latest.order_by(*newest_first))
    }
    return [
        Life(
            row.name,
            row.fingerprint,
            row.state,
            row.created,
            names.get(row.parent or ""),
            row.training.get("after", {}),
            decided.get(row.fingerprint),
            collections.get(row.fingerprint, {}),
        )
        for row in rows
    ]
