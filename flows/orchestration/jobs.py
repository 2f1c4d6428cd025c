"""Jobs that commands start: each opens the stores, shows its progress and records its run. Knows no Prefect.

A command runs them in its own process, or as flows where there is a Prefect server.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from flows.config.settings import Settings
from flows.ingestion.pipeline import Request, ingest_source
from flows.ingestion.report import IngestReport
from flows.reindexing.reindex import Order, Switched, free_disk
from flows.reindexing.reindex import reindex as rebuild
from flows.resources.connections import open_deps, open_stores
from flows.tracking.progress import progress_bar, stages
from storage.sources import BadSource, count_rows

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
        progress_bar(f"ingest {location.name}", expected_rows(location, request.limit)) as advance,
    ):
        return ingest_source(
            deps, settings, request, step=step, prefect_run_id=prefect_run_id, advance=advance
        )


def expected_rows(location: Path, limit: int | None) -> int | None:
    """Return how long the progress bar is; None where the rows cannot be counted, as the run will say."""
    try:
        return min(count_rows(location), limit or sys.maxsize)
    except BadSource:
        return None


def reindex(
    settings: Settings,
    order: Order,
    *,
    step: Callable[[Callable[[], Switched]], Switched] = run_here,
    prefect_run_id: UUID | None = None,
) -> Switched:
    """Fill the collection of a model and switch searches to it; see `flows.reindexing.reindex.reindex`."""
    with open_stores(settings, wait_s=settings.retry_for_s) as stores, stages("reindex") as advance:
        return step(
            lambda: rebuild(
                stores,
                settings,
                order,
                free_bytes=free_disk(settings),
                prefect_run_id=prefect_run_id,
                advance=advance,
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

    with open_stores(settings, wait_s=settings.retry_for_s) as stores, stages("finetune") as advance:
        return step(
            lambda: train_candidate(stores, settings, order, prefect_run_id=prefect_run_id, advance=advance)
        )
