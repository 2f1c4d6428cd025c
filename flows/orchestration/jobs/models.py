"""Evaluate, train and promote models, and switch searches between them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows.config.settings import Settings
from flows.datasets.test_sets import MAX_TEST_RECORDS, EvaluationChoice, NothingToEvaluate, choose_test_set
from flows.evaluation import evaluate as evaluation
from flows.evaluation import promotion_gate
from flows.orchestration.jobs import run_here
from flows.reindexing import reindex as reindexing
from flows.reindexing.reindex import ReindexRequest, ReindexResult, free_disk
from flows.resources.connections import Stores, open_stores
from flows.tracking.progress import Progress, no_progress
from flows.tracking.run_log import tracked_run
from storage.errors import Conflict
from storage.postgres.locks import Busy, flow_lock
from storage.qdrant import NoCollection

if TYPE_CHECKING:
    from flows.training.spec import Candidate

Counts = dict[str, Any]


class NotSwitched(Conflict):
    """Report a promoted candidate that searches could not be switched to."""

    retryable = True


def evaluate(
    settings: Settings, prefect_run_id: UUID | None = None, *, progress: Progress = no_progress
) -> Counts:
    """Evaluate the active model on held-out records.

    Raises:
        Busy: another scheduled evaluation is running.
    """
    with (
        open_stores(settings, wait_s=settings.retry_for_s) as stores,
        tracked_run(
            stores.sessions,
            flow_lock(stores.engine, "evaluate"),
            "evaluate",
            for_s=settings.retry_for_s,
            prefect_run_id=prefect_run_id,
            progress=progress,
        ) as run,
    ):
        run.counts = measure_held_out(stores, settings, run.progress)
    return run.counts


def measure_held_out(stores: Stores, settings: Settings, progress: Progress) -> Counts:
    """Return the figures of the active model, or why there are none."""
    try:
        held_out = choose_test_set(
            stores, settings, EvaluationChoice(held_out=True), (), at_most=MAX_TEST_RECORDS
        )
        return summarize(evaluation.evaluate(stores, settings, (), held_out, progress=progress))
    except (NothingToEvaluate, NoCollection) as error:
        return {"nothing": str(error)}


def summarize(measured: evaluation.Evaluation) -> Counts:
    """Return the figures of one model by direction."""
    [model] = measured.models
    whole = (one for one in model.measured if one.part is None)
    found = {one.direction: {name: figure.value for name, figure in one.figures.items()} for one in whole}
    return {"model": model.model, "dataset": measured.dataset} | found


def finetune(
    settings: Settings,
    prefect_run_id: UUID | None = None,
    *,
    promote: bool = True,
    step: "Callable[[Callable[[], Candidate]], Candidate]" = run_here,
    progress: Progress = no_progress,
    **options: Any,
) -> "Candidate | Counts":
    """Train a candidate, and by default promote it and re-index.

    Args:
        promote: switch searches to the candidate if it passes the gate; False returns it after training.
        step: runs the training; a Prefect task does so under Prefect.
        options: those of `flows.training.spec.training_spec`.

    Raises:
        TooFewPairs: the stores hold too few pairs to learn from.
        NotSwitched: the candidate is promoted, but another re-index is running.
        Busy: another training is running.
    """
    from flows.training.finetune import train_candidate  # libraries that take ten seconds to import
    from flows.training.spec import training_spec

    order = training_spec(**options)
    with open_stores(settings, wait_s=settings.retry_for_s) as stores:
        candidate = step(
            lambda: train_candidate(stores, settings, order, prefect_run_id=prefect_run_id, progress=progress)
        )
        if not promote:
            return candidate
        decision = promotion_gate.promote(
            stores, settings, candidate.name, prefect_run_id=prefect_run_id, progress=progress
        )
        done = {"candidate": candidate.name, "promoted": decision.promoted}
        if not decision.promoted:
            return done
        return done | _switch(stores, settings, candidate.name, prefect_run_id, progress).as_json()


def _switch(
    stores: Stores, settings: Settings, model: str, prefect_run_id: UUID | None, progress: Progress
) -> ReindexResult:
    """Switch searches to a promoted model."""
    order, free = ReindexRequest(model), free_disk(settings)
    try:
        return reindexing.reindex(
            stores, settings, order, free_bytes=free, prefect_run_id=prefect_run_id, progress=progress
        )
    except Busy as error:
        raise NotSwitched(
            f"{model} is promoted, but {error}; then run: sightline reindex --model {model}"
        ) from error


def promote(
    settings: Settings,
    prefect_run_id: UUID | None = None,
    *,
    model: str,
    force: bool = False,
    progress: Progress = no_progress,
) -> Counts:
    """Decide whether searches may use a candidate; see `flows.evaluation.promotion_gate.promote`."""
    with open_stores(settings, wait_s=settings.retry_for_s) as stores:
        decision = promotion_gate.promote(
            stores, settings, model, force=force, prefect_run_id=prefect_run_id, progress=progress
        )
    return {"candidate": decision.candidate, "promoted": decision.promoted, "forced": decision.forced}


def reindex(
    settings: Settings,
    prefect_run_id: UUID | None = None,
    *,
    model: str,
    force: bool = False,
    yes: bool = False,
    max_missing: int = 0,
    step: Callable[[Callable[[], ReindexResult]], ReindexResult] = run_here,
    progress: Progress = no_progress,
) -> ReindexResult:
    """Switch searches to a model; see `flows.reindexing.reindex.reindex`.

    Args:
        step: runs the re-index; a Prefect task does so under Prefect.
    """
    order, free = ReindexRequest(model, force, yes, max_missing), free_disk(settings)
    with open_stores(settings, wait_s=settings.retry_for_s) as stores:
        return step(
            lambda: reindexing.reindex(
                stores, settings, order, free_bytes=free, prefect_run_id=prefect_run_id, progress=progress
            )
        )


def rollback(
    settings: Settings, prefect_run_id: UUID | None = None, *, progress: Progress = no_progress
) -> ReindexResult:
    """Switch searches back to the model before; see `flows.reindexing.reindex.rollback`."""
    with open_stores(settings, wait_s=settings.retry_for_s) as stores:
        return reindexing.rollback(stores, settings, prefect_run_id=prefect_run_id, progress=progress)
