"""Jobs that commands start: each opens the stores, shows its progress and records its run. Knows no Prefect.

A command runs them in its own process, or as flows where there is a Prefect server.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from flows.config.settings import Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.report import IngestReport
from flows.ingestion.request import Request
from flows.reindexing.reindex import Order, Switched, free_disk
from flows.reindexing.reindex import reindex as rebuild
from flows.resources.connections import open_deps, open_stores
from flows.tracking.progress import stage_bars

if TYPE_CHECKING:
    from flows.training.finetune import Candidate
    from flows.training.finetune import Order as TrainingOrder

Result = TypeVar("Result")


def run_here(work: Callable[[], Result]) -> Result:
    """Run a step of a job in this process, unobserved."""
    return work()


def ingest(
    settings: Settings,
    request: Request,
    location: Path,
    *,
    step: Callable[[Callable[[], int]], int] = run_here,
    prefect_run_id: UUID | None = None,
) -> IngestReport:
    """Ingest every record of the source at `location`; see `flows.ingestion.pipeline.ingest_source`."""
    with (
        open_deps(settings, wait_s=settings.retry_for_s) as deps,
        stage_bars(f"ingest {location.name}") as progress,
    ):
        return ingest_source(
            deps, settings, request, step=step, prefect_run_id=prefect_run_id, progress=progress
        )


def reindex(
    settings: Settings,
    order: Order,
    *,
    step: Callable[[Callable[[], Switched]], Switched] = run_here,
    prefect_run_id: UUID | None = None,
) -> Switched:
    """Fill the collection of a model and switch searches to it; see `flows.reindexing.reindex.reindex`."""
    with open_stores(settings, wait_s=settings.retry_for_s) as stores, stage_bars("reindex") as progress:
        return step(
            lambda: rebuild(
                stores,
                settings,
                order,
                free_bytes=free_disk(settings),
                prefect_run_id=prefect_run_id,
                progress=progress,
            )
        )


def finetune(
    settings: Settings,
    order: "TrainingOrder",
    *,
    step: "Callable[[Callable[[], Candidate]], Candidate]" = run_here,
    prefect_run_id: UUID | None = None,
) -> "Candidate":
    """Train a candidate; see `flows.training.finetune.train_candidate`."""
    from flows.training.finetune import (
        train_candidate,  # and with it libraries that take ten seconds to import
    )

    with open_stores(settings, wait_s=settings.retry_for_s) as stores, stage_bars("finetune") as progress:
        return step(
            lambda: train_candidate(stores, settings, order, prefect_run_id=prefect_run_id, progress=progress)
        )
