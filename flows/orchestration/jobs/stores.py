"""Compare, repair, back up, restore and purge the stores."""

from typing import Any
from uuid import UUID

from flows.config.settings import BadSettings, Settings
from flows.maintenance import backup as backups
from flows.maintenance import purge as purging
from flows.maintenance import repair as repairing
from flows.maintenance import restore as restoring
from flows.maintenance.backup_files import BadBackup
from flows.resources.comparison import damage_of, record_comparison
from flows.resources.connections import open_deps, open_stores
from flows.resources.model_loader import models_folder
from flows.tracking.progress import Progress, no_progress
from flows.tracking.run_log import tracked_run
from storage.errors import Conflict
from storage.postgres.locks import flow_lock

Counts = dict[str, Any]


class StoresDiffer(Conflict):
    """Report that Postgres and Qdrant differ."""


def reconcile(
    settings: Settings, prefect_run_id: UUID | None = None, *, progress: Progress = no_progress
) -> Counts:
    """Compare the stores without changing them.

    Raises:
        StoresDiffer: gives the number of differences and the remedy.
        Busy: another comparison or a repair is running.
    """
    with open_stores(settings, wait_s=settings.retry_for_s) as stores:
        report = record_comparison(stores, settings, prefect_run_id=prefect_run_id, progress=progress)
    if report.damage:
        raise StoresDiffer(damage_of(report))
    return dict(report.counts)


def repair(
    settings: Settings, prefect_run_id: UUID | None = None, *, progress: Progress = no_progress
) -> Counts:
    """Repair the differences between the stores; see `flows.maintenance.repair.repair`.

    Raises:
        StoresDiffer: some differences remain.
    """
    with open_deps(settings, wait_s=settings.retry_for_s) as deps:
        done = repairing.repair(
            deps,
            settings,
            max_delete=repairing.MAX_DELETE,
            yes=False,
            prefect_run_id=prefect_run_id,
            progress=progress,
        )
    if done.after.damage:
        raise StoresDiffer("; ".join([damage_of(done.after), *done.unrepaired]))
    return {"before": dict(done.before.counts), "rounds": done.rounds}


def backup(
    settings: Settings, prefect_run_id: UUID | None = None, *, progress: Progress = no_progress
) -> Counts:
    """Write a backup to SIGHTLINE_BACKUP_URL.

    Raises:
        BadSettings: it is not set.
        Busy: another process writes.
    """
    target = _backup_url(settings)
    with open_stores(settings.with_time(), wait_s=settings.retry_for_s) as stores:
        made = backups.backup(
            stores,
            target,
            settings.home,
            models=models_folder(settings),
            for_s=settings.retry_for_s,
            prefect_run_id=prefect_run_id,
            progress=progress,
        )
    proved = None if made.proved is None else made.proved.at.isoformat()
    return {"location": made.location, "items": made.manifest.items, "proved": proved}


def prove(
    settings: Settings, prefect_run_id: UUID | None = None, *, progress: Progress = no_progress
) -> Counts:
    """Restore the latest backup into temporary stores and compare them.

    Raises:
        BadSettings: SIGHTLINE_BACKUP_URL is not set.
        BadBackup: it cannot be restored, or the restored stores differ from it.
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
            progress=progress,
        ) as run,
    ):
        checked = restoring.check(settings.with_time(), target, progress=run.progress)
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


def purge(
    settings: Settings,
    prefect_run_id: UUID | None = None,
    *,
    progress: Progress = no_progress,  # noqa: ARG001 (every job has it)
) -> Counts:
    """Purge unused images and collections, within the usual limit.

    Raises:
        TooManyOrphans: more than the usual share of all images is unused; nothing was removed.
        Busy: another process writes.
    """
    with open_stores(settings, wait_s=settings.retry_for_s) as stores:
        return purging.purge(stores, settings, prefect_run_id=prefect_run_id).as_json()
