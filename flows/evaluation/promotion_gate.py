"""Decide on promotions by comparing models on held-out data."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from embedding.encoders.sentence_encoder import Encoder
from embedding.evaluation.bootstrap import Estimate, Sample, bootstrap_mean
from embedding.evaluation.metrics import Scores
from flows.config.settings import PromotionGate, Settings
from flows.datasets.test_sets import (
    MAX_TEST_RECORDS,
    NothingToEvaluate,
    TestSet,
    of_held_out,
    of_manifest,
    training_splits,
)
from flows.evaluation.evaluate import DirectionScores, score_models
from flows.resources.connections import Stores
from flows.resources.model_loader import Load, open_model
from flows.tracking.progress import Progress, no_progress
from flows.tracking.run_log import tracked_run
from storage import qdrant
from storage.errors import Conflict
from storage.postgres import model_registry
from storage.postgres.locks import flow_lock

MEASURE = "recall@10"


class AlreadyActive(Conflict):
    """The candidate is the active model already."""

    refusal = True


@dataclass(frozen=True, slots=True)
class Check:
    """Hold one criterion of the promotion gate, and its outcome."""

    name: str
    """`held-out`, `outside`, or a language such as `lang=de`."""

    passed: bool
    queries: int
    difference: Estimate
    """Gain in recall@10, candidate minus active model, with its 95% confidence interval."""

    limit: float
    """Bound that the low end of the interval must exceed (held-out), or the gain itself must reach."""

    candidate: float
    active: float
    """Recall@10 of each model."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Hold the decision on a candidate, with its checks."""

    candidate: str
    active: str
    promoted: bool
    forced: bool
    checks: tuple[Check, ...]
    remarks: tuple[str, ...]
    """Checks that were not possible, with the reason."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def promote(
    stores: Stores,
    settings: Settings,
    name: str,
    *,
    outside: Path | None = None,
    force: bool = False,
    load: Load = open_model,
    prefect_run_id: UUID | None = None,
    progress: Progress = no_progress,
) -> Decision:
    """Compare a candidate with the active model, and record the decision.

    Args:
        outside: a manifest of external records, on which a candidate must not forget earlier abilities;
            default: that of the settings, if any.
        force: promote it even if checks fail.

    Raises:
        AlreadyActive: there is nothing to decide.
        NoCollection: nothing has been ingested yet.
        NothingToEvaluate: there is no held-out data to compare them on, and `force` is not set.
        ModelMismatch: the collection was made by another version of the active model.
        Busy: another promotion is running.
    """
    with tracked_run(
        stores.sessions,
        flow_lock(stores.engine, "promotion"),
        "promote",
        for_s=settings.retry_for_s,
        options={"model": name},
        prefect_run_id=prefect_run_id,
        progress=progress,
    ) as run:
        collection = qdrant.active_collection(stores.vectors)
        if collection is None:
            raise qdrant.NoCollection
        active, candidate = load(settings, collection.model), load(settings, name)
        if candidate.fingerprint == collection.fingerprint:
            raise AlreadyActive(f"searches use {name!r} already")
        qdrant.require_model(collection, active.fingerprint, active.name)
        where = settings.gate.outside if outside is None else outside
        checks, remarks = _checks(stores, settings, (active, candidate), where, force, run.progress)
        passed = bool(checks) and all(check.passed for check in checks)
        decision = Decision(
            candidate.name, active.name, passed or force, force and not passed, checks, remarks
        )
        run.counts = {"promoted": decision.promoted, "forced": decision.forced}
        run.persist(partial(_record, stores, candidate, active, decision))
    return decision


def decide(
    gate: PromotionGate,
    held_out: tuple[Sequence[DirectionScores], Sequence[DirectionScores]],
    outside: tuple[Sequence[DirectionScores], Sequence[DirectionScores]] | None,
) -> tuple[Check, ...]:
    """Return the outcome of each check, without reading any store.

    Better on held-out data: the 95% confidence interval of the gain in recall@10, averaged over both
    directions, is above `gate.margin`. No worse elsewhere: the gain itself is not below -`gate.tolerance`, in
    each language with `gate.least_queries` queries and, averaged over directions, on the external set.

    Args:
        held_out: the scores of the active model and of the candidate, each by direction.
        outside: the same on the external set, if there is one.
    """
    checks = [_check("held-out", held_out, None, gate.margin, certain=True)]
    if outside is not None:
        checks.append(_check("outside", outside, None, -gate.tolerance, certain=False))
    active, candidate = (
        [one for one in side if one.direction.query_modality == "texts"] for side in held_out
    )
    languages = sorted({part for one in active for part in one.direction.parts if part.startswith("lang=")})
    for language in languages:
        check = _check(language, (active, candidate), language, -gate.tolerance, certain=False)
        if check.queries >= gate.least_queries:
            checks.append(check)
    return tuple(checks)


def _check(
    name: str,
    judged: tuple[Sequence[DirectionScores], Sequence[DirectionScores]],
    part: str | None,
    limit: float,
    *,
    certain: bool,
) -> Check:
    active, candidate = judged
    chosen = [
        np.ones(len(one.direction.queries), bool) if part is None else one.direction.parts[part]
        for one in active
    ]
    differences: list[Scores] = [
        ours.scores[MEASURE] - theirs.scores[MEASURE] for ours, theirs in zip(candidate, active, strict=True)
    ]
    difference = bootstrap_mean(
        [
            Sample(own[kept], one.direction.records[kept])
            for one, own, kept in zip(active, differences, chosen, strict=True)
        ]
    )
    value = difference.low if certain else difference.value
    passed = value is not None and (value > limit if certain else value >= limit)
    means = [
        float(np.mean([one.scores[MEASURE][kept].mean() for one, kept in zip(side, chosen, strict=True)]))
        for side in (candidate, active)
    ]
    queries = int(sum(kept.sum() for kept in chosen))
    return Check(name, passed, queries, difference, limit, *means)


def _checks(
    stores: Stores,
    settings: Settings,
    encoders: tuple[Encoder, Encoder],
    outside: Path | None,
    force: bool,
    progress: Progress,
) -> tuple[tuple[Check, ...], tuple[str, ...]]:
    """Return the checks of the second model against the first, with remarks."""

    def judged(test_set: TestSet) -> tuple[Sequence[DirectionScores], Sequence[DirectionScores]]:
        _, (active, candidate) = score_models(stores, settings, encoders, test_set, progress=progress)
        return active, candidate

    remarks = []
    if outside is None:
        remarks.append("forgetting was not checked: no external set is named; see SIGHTLINE_GATE__OUTSIDE")
    try:
        splits = training_splits(stores, [one.fingerprint for one in encoders])
        held_out = judged(of_held_out(stores, settings.limits, splits, None, at_most=MAX_TEST_RECORDS))
        elsewhere = None if outside is None else judged(of_manifest(outside, settings.langs, None))
    except NothingToEvaluate as error:
        if not force:
            raise
        return (), (*remarks, f"nothing was checked: {error}")
    return decide(settings.gate, held_out, elsewhere), tuple(remarks)


def _record(stores: Stores, candidate: Encoder, active: Encoder, decision: Decision) -> None:
    with stores.sessions.begin() as session:
        for model in (active, candidate):
            model_registry.save_model(session, fingerprint=model.fingerprint, name=model.name, dim=model.dim)
        session.flush()
        model_registry.save_decision(
            session,
            candidate=candidate.fingerprint,
            active=active.fingerprint,
            promoted=decision.promoted,
            forced=decision.forced,
            checks=[asdict(check) for check in decision.checks],
        )
