"""What runs on a schedule, a plain function each, which puts its run on record. Knows no Prefect."""

from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID

from flows.config.settings import BadSettings, Settings
from flows.datasets.test_sets import MAX_TEST_RECORDS, EvaluationChoice, NothingToEvaluate, choose_test_set
from flows.evaluation.evaluate import Evaluation
from flows.evaluation.evaluate import evaluate as measure
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.report import COUNTS
from flows.ingestion.request import EmptySource, PartOfSource, Request
from flows.ingestion.run_state import LimitExceeded
from flows.maintenance.backup import backup as write_backup
from flows.maintenance.backup_files import BadBackup
from flows.maintenance.purge import purge as remove_orphans
from flows.maintenance.restore import check as check_backup
from flows.resources.comparison import damage_of, record_comparison
from flows.resources.connections import Deps, Stores, open_stores, with_model
from flows.resources.model_loader import models_folder
from flows.tracking.progress import Progress
from flows.tracking.run_log import tracked_run
from storage.errors import Conflict, SightlineError
from storage.postgres import runs
from storage.postgres.locks import Busy, flow_lock
from storage.postgres.runs import SourceRead
from storage.qdrant import NoCollection
from storage.sources import BadSource

Counts = dict[str, Any]


class SourcesFailed(SightlineError):
    """Some sources could not be read again; all others were."""


class StoresDiffer(Conflict):
    """Postgres and Qdrant do not agree; nothing was changed."""


def ingest(settings: Settings, prefect_run_id: UUID | None) -> Counts:
    """Read every source again, from where it was ingested last and with what was asked for then.

    A source that another run writes just now is left to that.

    Raises:
        SourcesFailed: for each of them, why; the others have been read.
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
        ) as run,
    ):
        with stores.sessions() as session:
            sources = runs.known_sources(session)
        counts, failed = Counter[str](), dict[str, str]()
        run.counts = {"sources": len(sources), "failed": failed}
        if sources:
            deps = with_model(stores, settings)
            for done, read in enumerate(sources):
                run.lock.lock.keep()
                run.progress("sources", done, len(sources))
                counts += ingest_again(deps, settings, read, prefect_run_id, failed)
                run.counts |= counts
        if failed:
            why = "; ".join(f"{source}: {problem}" for source, problem in failed.items())
            raise SourcesFailed(f"{len(failed):,} of {len(sources):,} sources failed: {why}")
    return run.counts


def ingest_again(
    deps: Deps, settings: Settings, read: SourceRead, prefect_run_id: UUID | None, failed: dict[str, str]
) -> Counter[str]:
    """Return the counts of one source; should it fail, why is put into `failed`.

    How much a person let an ingest delete is not asked for again: nobody is there to answer for it.
    """
    langs = read.options.get("langs")
    try:
        request = Request(
            Path(read.location),
            read.source,
            None if langs is None else tuple(langs),
            read.options.get("limit"),
            read.options.get("delete_missing", False),
        )
        report = ingest_source(deps, settings, request, prefect_run_id=prefect_run_id)
    except Busy:
        return Counter(busy=1)
    except (BadSource, EmptySource, LimitExceeded, PartOfSource) as error:
        failed[read.source] = str(error)
        return Counter()
    return Counter({name: getattr(report, name) for name in COUNTS})


def evaluate(settings: Settings, prefect_run_id: UUID | None) -> Counts:
    """Measure the model in use on what it has not learned from.

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
        ) as run,
    ):
        run.counts = figures(stores, settings, run.progress)
    return run.counts


def figures(stores: Stores, settings: Settings, progress: Progress) -> Counts:
    """Return what an evaluation found; where there is nothing to evaluate yet, that."""
    try:
        held_out = choose_test_set(
            stores, settings, EvaluationChoice(held_out=True), (), at_most=MAX_TEST_RECORDS
        )
        return summary(measure(stores, settings, (), held_out, progress=progress))
    except (NothingToEvaluate, NoCollection) as error:
        return {"nothing": str(error)}


def summary(evaluation: Evaluation) -> Counts:
    """Return the figures of one model, by direction."""
    [model] = evaluation.models
    whole = (one for one in model.measured if one.part is None)
    found = {one.direction: {name: figure.value for name, figure in one.figures.items()} for one in whole}
    return {"model": model.model, "dataset": evaluation.dataset} | found


def reconcile(settings: Settings, prefect_run_id: UUID | None) -> Counts:
    """Compare the stores, and change nothing.

    Raises:
        StoresDiffer: in how many records, and what mends that.
        Busy: another comparison or a repair is running.
    """
    with open_stores(settings, wait_s=settings.retry_for_s) as stores:
        report = record_comparison(stores, settings, prefect_run_id=prefect_run_id)
    if report.damage:
        raise StoresDiffer(damage_of(report))
    return dict(report.counts)


def backup(settings: Settings, prefect_run_id: UUID | None) -> Counts:
    """Write a backup to where the settings say.

    Raises:
        BadSettings: they do not.
        Busy: another process writes.
    """
    target = _backup_url(settings)
    with open_stores(settings.with_time(), wait_s=settings.retry_for_s) as stores:
        made = write_backup(
            stores,
            target,
            settings.home,
            models=models_folder(settings),
            for_s=settings.retry_for_s,
            prefect_run_id=prefect_run_id,
        )
    proved = None if made.proved is None else made.proved.at.isoformat()
    return {"location": made.location, "items": made.manifest.items, "proved": proved}


def prove(settings: Settings, prefect_run_id: UUID | None) -> Counts:
    """Restore the latest backup into throw-away stores, and compare them.

    Raises:
        BadSettings: they do not say where backups are.
        BadBackup: it cannot be restored, or comes back as something else.
        Busy: another proof is running.
    """
    target = _backup_url(settings)
    with (
        open_stores(settings, wait_s=settings.retry_for_s) as stores,
        tracked_run(
            stores.sessions,
            flow_lock(stores.engine, "prove"),
            "prove",
            for_s=settings.retry_for_s,
            prefect_run_id=prefect_run_id,
        ) as run,
    ):
        checked = check_backup(settings.with_time(), target)
        run.counts = {
            "location": checked.location,
            "items": checked.report.items,
            "points": sum(checked.points.values()),
        }
        if checked.proof is None:
            raise BadBackup(f"{checked.location} comes back as something else: {damage_of(checked.report)}")
    return run.counts


def _backup_url(settings: Settings) -> str:
    if settings.backup_url is None:
        raise BadSettings("SIGHTLINE_BACKUP_URL is not set; set it to a folder or an fsspec URL")
    return settings.backup_url


def purge(settings: Settings, prefect_run_id: UUID | None) -> Counts:
    """Remove what nothing needs any more, unless that is suspiciously much.

    Raises:
        TooManyOrphans: more than the usual share of all images; nothing was removed.
        Busy: another process writes.
    """
    with open_stores(settings, wait_s=settings.retry_for_s) as stores:
        return remove_orphans(stores, settings, prefect_run_id=prefect_run_id).as_json()
