"""Ingest one source or all of them, and retry rejects."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from flows.config.settings import Settings, split_list
from flows.ingestion.missing_items import DEFAULT_MAX_SHARE
from flows.ingestion.pipeline import Step, ingest_source
from flows.ingestion.report import COUNTS, IngestReport
from flows.ingestion.request import EmptySource, PartOfSource, Request
from flows.ingestion.retry_rejects import retry_rejects
from flows.ingestion.run_state import LimitExceeded
from flows.orchestration.jobs import run_here
from flows.resources.connections import Deps, open_deps, open_stores, with_model
from flows.tracking.progress import Progress, no_progress
from flows.tracking.run_log import tracked_run
from storage.errors import SightlineError
from storage.postgres import runs
from storage.postgres.locks import Busy, flow_lock
from storage.postgres.runs import SourceRead
from storage.sources import BadSource


class SourcesFailed(SightlineError):
    """Report the sources that an ingest of all sources could not read."""


class RejectsNotRetried(SightlineError):
    """Report the sources with rejects that could not be retried."""


def ingest(
    settings: Settings,
    prefect_run_id: UUID | None = None,
    *,
    location: Path | None = None,
    name: str | None = None,
    langs: str | None = None,
    limit: int | None = None,
    delete_missing: bool = False,
    revive: bool = False,
    max_delete: float = DEFAULT_MAX_SHARE,
    yes: bool = False,
    exclude: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    step: Step = run_here,
    progress: Progress = no_progress,
) -> IngestReport | dict[str, Any]:
    """Ingest one source, or every known source if there is no location.

    Args:
        langs: comma-separated languages, or `all`.
        exclude: patterns of files and folders to leave out.
        columns: names in the manifest of the columns `key`, `image`, `text` and `texts`.
        step: encodes some batches; a Prefect task does so under Prefect.

    Raises:
        SourcesFailed: some of all sources could not be read.
    """
    if location is None:
        return ingest_all(settings, prefect_run_id, step=step, progress=progress)
    chosen = None if langs is None else split_list(langs)
    reading = settings.reading({"exclude": exclude, "columns": columns or {}})
    request = Request(
        location, name, chosen, limit, delete_missing, revive, max_delete=max_delete, yes=yes, reading=reading
    )
    with open_deps(settings, wait_s=settings.retry_for_s) as deps:
        return ingest_source(
            deps, settings, request, step=step, prefect_run_id=prefect_run_id, progress=progress
        )


def ingest_all(
    settings: Settings, prefect_run_id: UUID | None, *, step: Step, progress: Progress
) -> dict[str, Any]:
    """Ingest every source again from its last location with its last options.

    A source that another run is writing is left to that run.

    Raises:
        SourcesFailed: names each with the reason; the others have been read.
        Busy: another run reads all sources.
    """
    with (
        open_stores(settings, wait_s=settings.retry_for_s) as stores,
        tracked_run(
            stores.sessions,
            flow_lock(stores.engine, "ingest"),
            "ingest",
            for_s=settings.retry_for_s,
            prefect_run_id=prefect_run_id,
            progress=progress,
        ) as run,
    ):
        with stores.sessions() as session:
            sources = runs.known_sources(session)
        counts, failed = Counter[str](), dict[str, str]()
        run.counts = {"sources": len(sources), "failed": failed}
        if sources:
            deps = with_model(stores, settings)
            for done, read in enumerate(sources):
                run.lock.lock.ensure()
                run.progress("sources", done, len(sources))
                counts += ingest_again(deps, settings, read, prefect_run_id, failed, step=step)
                run.counts |= counts
        if failed:
            reasons = "; ".join(f"{source}: {problem}" for source, problem in failed.items())
            raise SourcesFailed(f"{len(failed):,} of {len(sources):,} sources failed: {reasons}")
    return run.counts


def ingest_again(
    deps: Deps,
    settings: Settings,
    read: SourceRead,
    prefect_run_id: UUID | None,
    failed: dict[str, str],
    *,
    step: Step = run_here,
) -> Counter[str]:
    """Ingest one known source and return its counts.

    The options that let a person exceed the delete limit are not repeated: a scheduled run is unattended.

    Args:
        failed: receives the reason of a failure, by source.
    """
    langs = read.options.get("langs")
    try:
        request = Request(
            Path(read.location),
            read.source,
            None if langs is None else tuple(langs),
            read.options.get("limit"),
            read.options.get("delete_missing", False),
            reading=settings.reading(read.options),
        )
        report = ingest_source(deps, settings, request, step=step, prefect_run_id=prefect_run_id)
    except Busy:
        return Counter(busy=1)
    except (BadSource, EmptySource, LimitExceeded, PartOfSource) as error:
        failed[read.source] = str(error)
        return Counter()
    return Counter({name: getattr(report, name) for name in COUNTS})


def retry(
    settings: Settings,
    prefect_run_id: UUID | None = None,
    *,
    reason: str | None = None,
    source: str | None = None,
    rejects: Collection[UUID] | None = None,
    progress: Progress = no_progress,  # noqa: ARG001 (every job has it)
) -> dict[str, Any]:
    """Retry rejects; see `flows.ingestion.retry_rejects.retry_rejects`.

    Raises:
        RejectsNotRetried: gives the reason for each source.
    """
    with open_deps(settings, wait_s=settings.retry_for_s) as deps:
        done = retry_rejects(
            deps, settings, reason=reason, source=source, ids=rejects, prefect_run_id=prefect_run_id
        )
    problems = [f"{one.source}: {one.problem}" for one in done if one.problem]
    if problems:
        raise RejectsNotRetried("; ".join(problems))
    return {"tried": sum(one.tried for one in done), "open": sum(one.open for one in done)}
