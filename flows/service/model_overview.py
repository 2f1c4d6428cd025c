"""Read all models with their lineage, decisions, metrics and collections."""

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
"""Number of runs of a flow from which a pace is estimated."""

WORK = ("finetune", "promote", "reindex", "rollback")
"""Flows that train models, evaluate them, and switch searches to them."""


@dataclass(frozen=True, slots=True)
class ModelOverview:
    """Hold the state of all models; equal states compare equal."""

    models: tuple[tuple[int, ModelHistory], ...]
    """Models with their depth in the lineage; parents first."""

    collections: tuple[CollectionHistory, ...]
    points: Mapping[str, int]
    """By collection; without absent collections, and empty while Qdrant is unavailable."""

    measured: tuple[EvaluationFigure, ...]
    decisions: tuple[Decision, ...]
    last_runs: tuple[Run, ...]
    """The last run of each flow of `WORK`."""

    qdrant_problem: str | None

    @property
    def active(self) -> ModelHistory | None:
        """Return the active model."""
        return next((life for _, life in self.models if life.state == "active"), None)

    @property
    def back(self) -> CollectionHistory | None:
        """Return the collection that a rollback switches to."""
        used = [
            one
            for one in self.collections
            if one.state == "retired" and one.retired is not None and one.activated is not None
        ]
        latest = sorted(used, key=lambda one: (one.retired, one.name), reverse=True)
        return next((one for one in latest if one.name in self.points), None)

    @property
    def names(self) -> dict[str, str]:
        """Return the names of the models by fingerprint."""
        return {life.fingerprint: life.name for _, life in self.models}

    def is_promoted(self, life: ModelHistory) -> bool:
        """Return whether the last decision promotes a model over the active one."""
        active, decided = self.active, life.decided
        if active is None or decided is None:
            return False
        return decided.promoted and decided.over_fingerprint == active.fingerprint


@dataclass(frozen=True, slots=True)
class BackfillEstimate:
    """Estimate the effort of a backfill."""

    records: int
    """Items without a current point in the collection."""

    seconds: float | None
    """Estimated duration; None without an earlier run."""

    by: str | None
    """The flow that the pace was measured on."""


def read_model_overview(backend: Backend, *, decisions: int, before: int | None = None) -> ModelOverview:
    """Read Postgres, and Qdrant if available.

    Args:
        decisions: number of decisions of the promotion gate, the newest first.
        before: only decisions with a smaller id.

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
    return ModelOverview(models, collections, points, measured, decided, last, problem)


def tree(models: Sequence[ModelHistory]) -> tuple[tuple[int, ModelHistory], ...]:
    """Order models below their parents, with their depth; older siblings first."""
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


def estimate_backfill(session: Session, collection: str) -> BackfillEstimate:
    """Estimate a backfill of `collection`, which may be absent, from earlier runs.

    The pace is that of the largest of the last re-indexes, else of the last ingests: a run of a few records
    measures little but its start.
    """
    pending = statistics.figures(session, collection).pending
    for flow, counted in (("reindex", "written"), ("ingest", "embedded")):
        paces = [
            (run.counts.get(counted, 0), run.seconds.get("total", 0.0))
            for run in runs.recent_runs(session, RECENT, flow=flow, outcome="completed")
        ]
        embedded, seconds = max(paces, default=(0, 0.0))
        if embedded and seconds:
            return BackfillEstimate(pending, pending * seconds / embedded, flow)
    return BackfillEstimate(pending, None, None)
