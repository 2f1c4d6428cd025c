"""From what is stored to a better model in use: train a candidate, ask the gate, move the searches."""

from typing import Any
from uuid import UUID

from flows.config.settings import Settings
from flows.evaluation.promotion_gate import promote
from flows.reindexing.reindex import Order as ReindexOrder
from flows.reindexing.reindex import Switched, free_disk, reindex
from flows.resources.connections import Stores, open_stores
from flows.training.finetune import Order, train_candidate
from storage.errors import Conflict
from storage.postgres.locks import Busy


class NotSwitched(Conflict):
    """A candidate is promoted, but searches could not be moved to it."""

    retryable = True


def improve(settings: Settings, prefect_run_id: UUID | None) -> dict[str, Any]:
    """Train a candidate; if it passes the gate, have searches use it. Return what became of it.

    Raises:
        TooFewPairs: there is not enough to learn from.
        NotSwitched: it is promoted, but another re-index is running.
        Busy: another training is running.
    """
    with open_stores(settings, wait_s=settings.retry_for_s) as stores:
        candidate = train_candidate(stores, settings, Order(), prefect_run_id=prefect_run_id)
        decision = promote(stores, settings, candidate.name, prefect_run_id=prefect_run_id)
        done = {"candidate": candidate.name, "promoted": decision.promoted}
        if not decision.promoted:
            return done
        return done | switch(stores, settings, candidate.name, prefect_run_id).as_json()


def switch(stores: Stores, settings: Settings, model: str, prefect_run_id: UUID | None) -> Switched:
    """Have searches go to `model`, which the gate has let through."""
    try:
        return reindex(
            stores,
            settings,
            ReindexOrder(model),
            free_bytes=free_disk(settings),
            prefect_run_id=prefect_run_id,
        )
    except Busy as error:
        raise NotSwitched(
            f"{model} is promoted, but {error}; then run: sightline reindex --model {model}"
        ) from error
