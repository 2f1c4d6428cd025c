"""One look at all models: where they come from, what was decided of them, and what a change would take."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from flows.service.pool import Backend
from storage import qdrant
from storage.errors import StoreUnavailable
from storage.postgres import model_history, runs, statistics
from storage.postgres.model_history import CollectionHistory, Decision, ModelHistory
from storage.postgres.runs import Run
from storage.postgres.statistics import EvaluationFigure

RECENT = 20
"""Runs of a flow, of which one tells its pace."""

WORK = ("finetune", "promote", "reindex", "rollback")
"""The flows that make models, judge them, and have searches use them."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """What was seen; two looks at the same are equal."""

    models: tuple[tuple[int, ModelHistory], ...]
    """Each with how many it comes from, one after the other; parents first."""

    collections: tuple[CollectionHistory, ...]
    points: Mapping[str, int]
    """By collection; none of a collection that is gone, or where Qdrant is away."""

    measured: tuple[EvaluationFigure, ...]
    decisions: tuple[Decision, ...]
    last_runs: tuple[Run, ...]
    """Of each flow of `WORK`."""

    qdrant_problem: str | None

    @property
    def active(self) -> ModelHistory | None:
        """The model that searches use."""
        return next((life for _, life in self.models if life.state == "active"), None)

    @property
    def back(self) -> CollectionHistory | None:
        """The collection that a rollback goes to."""
        used = [
            one
            for one in self.collections
            if one.state == "retired" and one.retired is not None and one.activated is not None
        ]
        latest = sorted(used, key=lambda one: (one.retired, one.name), reverse=True)
        return next((one for one in latest if one.name in self.points), None)

    @property
    def names(self) -> dict[str, str]:
        """The names of the models by their fingerprints."""
        return {life.fingerprint: life.name for _, life in self.models}

    def is_promoted(self, life: ModelHistory) -> bool:
        """Whether the last decision on a model lets it take the place of the one that is active now."""
        active, decided = self.active, life.decided
        if active is None or decided is None:
            return False
        return decided.promoted and decided.over_fingerprint == active.fingerprint


@dataclass(frozen=True, slots=True)
class Effort:
    """What filling a collection takes."""

    records: int
    """That would be embedded: it lacks them, or has them as they were."""

    seconds: float | None
    """About how long that takes; None where nothing has told yet."""

    by: str | None
    """The flow whose pace that is."""


def look_at_models(backend: Backend, *, decisions: int, before: int | None = None) -> Lineage:
    """Look at Postgres, and at Qdrant if it answers.

    Args:
        decisions: so many of the gate's, the newest, or those before the one with the id `before`.

    Raises:
        StoreUnavailable: Postgres does not answer.
    """
    with backend.sessions() as sessions, sessions() as session:
        models = tree(model_history.models(session))
        collections = tuple(model_history.collections(session))
        measured = tuple(statistics.last_evaluations(session))
        decided = tuple(model_history.decisions(session, decisions, before=before))
        last = tuple(run for run in runs.last_runs(session) if run.flow in WORK)
    points, problem = dict[str, int](), None
    try:
        with backend.vectors() as client:
            there = set(qdrant.list_collections(client))
            points = {one.name: qdrant.count(client, one.name) for one in collections if one.name in there}
    except StoreUnavailable as error:
        problem = str(error)
    return Lineage(models, collections, points, measured, decided, last, problem)


def tree(models: Sequence[ModelHistory]) -> tuple[tuple[int, ModelHistory], ...]:
    """Return each model below the one that it comes from, with its depth; the oldest of each kind first."""
    known = {life.fingerprint for life in models}
    below: dict[str | None, list[ModelHistory]] = defaultdict(list)
    for life in sorted(models, key=lambda life: (life.created, life.fingerprint)):
        below[life.parent_fingerprint if life.parent_fingerprint in known else None].append(life)
    waiting = [(0, life) for life in reversed(below[None])]
    ordered: list[tuple[int, ModelHistory]] = []
    while waiting:
        depth, life = waiting.pop()
        ordered.append((depth, life))
        waiting += [(depth + 1, child) for child in reversed(below[life.fingerprint])]
    return tuple(ordered)


def effort_of(session: Session, collection: str) -> Effort:
    """Return what it takes to fill `collection`, which need not be there, at the pace that was had before.

    Of the last re-indexes, else of the last ingests, the one that embedded most tells: one of a few records
    tells of little but its start.
    """
    pending = statistics.figures(session, collection).pending
    for flow, counted in (("reindex", "written"), ("ingest", "embedded")):
        paces = [
            (run.counts.get(counted, 0), run.seconds.get("total", 0.0))
            for run in runs.recent_runs(session, RECENT, flow=flow, outcome="completed")
        ]
        embedded, seconds = max(paces, default=(0, 0.0))
        if embedded and seconds:
            return Effort(pending, pending * seconds / embedded, flow)
    return Effort(pending, None, None)
