"""Move embedded stores into servers without embedding anything again."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from flows.config.settings import PREFIX, Settings
from flows.resources.comparison import ComparisonReport, damage_of, reconcile
from flows.resources.connections import Stores, open_stores
from flows.tracking.progress import Progress, no_progress, stage_steps
from flows.tracking.retry_policy import HeldLock, hold
from flows.tracking.run_log import tracked_run
from storage import qdrant, transfer
from storage.blobs import copy_new
from storage.embedded.postgres.server import has_postgres
from storage.errors import InvalidInput, SightlineError
from storage.postgres import runs
from storage.postgres.locks import exclusive_lock
from storage.transfer import MOVE

SERVERS = (f"{PREFIX}DATABASE_URL", f"{PREFIX}QDRANT__URL")


class NothingToMove(InvalidInput):
    """There are no embedded stores, or no servers to move them to."""

    refusal = True


class MoveFailed(SightlineError):
    """The servers differ from the embedded stores after a move."""


@dataclass(slots=True)
class MoveResult:
    """Count the copied objects, and compare the stores."""

    home: Path
    stays: tuple[Path, ...]
    """Folders of the data directory that stay in use."""

    pictures: int = 0
    """Images that SIGHTLINE_PICTURES_URL lacked."""

    points: dict[str, int] = field(default_factory=dict)
    """By collection."""

    rows: dict[str, int] = field(default_factory=dict)
    """By table."""

    report: ComparisonReport = field(default_factory=ComparisonReport)

    def as_json(self) -> dict[str, Any]:
        return {
            "home": str(self.home),
            "stays": [str(path) for path in self.stays],
            "pictures": self.pictures,
            "points": self.points,
            "rows": self.rows,
            "settings": {f"{PREFIX}HOME": str(self.home)} | dict.fromkeys(SERVERS, "as it is now"),
            "reconcile": self.report.as_json(),
        }


def move_to_servers(settings: Settings, *, progress: Progress = no_progress) -> MoveResult:
    """Copy the embedded stores into the servers of the settings.

    An interrupted move can be resumed. The embedded stores stay as they are. Fine-tuned models and receipts
    stay in the data directory, and so do images, unless `settings` name another place for them.

    Raises:
        NothingToMove: a server is not named, or there are no embedded stores.
        NotEmpty: the servers hold other data.
        AlreadyMoved: the move was completed before.
        Busy: another process writes to the embedded stores or to the servers.
        MoveFailed: the servers differ from the embedded stores.
    """
    urls = (settings.database_url, settings.qdrant.url)
    if lacking := [name for name, url in zip(SERVERS, urls, strict=True) if url is None]:
        raise NothingToMove(f"set {' and '.join(lacking)} to where the home is to be moved")
    if not has_postgres(settings.home):
        raise NothingToMove(
            f"{settings.home} holds no embedded stores; set {PREFIX}HOME to the folder that does"
        )
    slow = settings.with_time()
    with open_stores(slow.embedded()) as source, open_stores(slow, wait_s=settings.retry_for_s) as target:
        return move(source, target, slow, progress=progress)


def move(
    source: Stores, target: Stores, settings: Settings, *, progress: Progress = no_progress
) -> MoveResult:
    """Copy all stores to others, and compare; see `move_to_servers`.

    Images and points are copied before the rows that refer to them, and the alias last, so that an
    incomplete move is never taken for a complete one.
    """
    moved = MoveResult(settings.home.absolute(), _stays(settings))
    with ExitStack() as within:
        within.enter_context(hold(exclusive_lock(source.engine), for_s=settings.retry_for_s))
        lock = within.enter_context(hold(exclusive_lock(target.engine), for_s=settings.retry_for_s))
        home = transfer.system_identifier(source.engine)
        transfer.require_target(source.engine, target.engine, target.vectors, home)
        run = within.enter_context(tracked_run(target.sessions, lock, MOVE, options={"home": home}))
        moved.pictures = run.persist(partial(_copy_pictures, source, target, settings, progress))
        moved.points = _copy_points(source, target, lock, progress)
        moved.rows = run.persist(partial(_copy_rows, source, target, run.id, progress))
        run.persist(partial(transfer.copy_aliases, source.vectors, target.vectors))
        moved.report = run.persist(partial(reconcile, target, progress=progress))
        run.counts = {
            "pictures": moved.pictures,
            "points": sum(moved.points.values()),
            "rows": sum(moved.rows.values()),
            "differences": dict(moved.report.counts),
        }
        if moved.report.damage and moved.report.counts != reconcile(source).counts:
            raise MoveFailed(f"the servers differ from the embedded stores: {damage_of(moved.report)}")
    return moved


def _stays(settings: Settings) -> tuple[Path, ...]:
    names = ("models", "receipts", *(["pictures"] if settings.pictures_url is None else []))
    folders = (settings.home.absolute() / name for name in names)
    return tuple(folder for folder in folders if folder.exists())


def _copy_pictures(source: Stores, target: Stores, settings: Settings, progress: Progress) -> int:
    if source.blobs is None or target.blobs is None or settings.pictures_url is None:
        return 0
    copied = 0
    for _ in copy_new(source.blobs, target.blobs):
        copied += 1
        progress("images", copied, 0)
    return copied


def _copy_points(source: Stores, target: Stores, lock: HeldLock, progress: Progress) -> dict[str, int]:
    """Copy every collection; return the number of points by name."""
    lock.persist(partial(transfer.drop_extra_collections, source.vectors, target.vectors))
    return {
        name: lock.persist(partial(_copy_collection, source, target, name, progress))
        for name in transfer.collection_names(source.vectors)
    }


def _copy_collection(source: Stores, target: Stores, name: str, progress: Progress) -> int:
    step = stage_steps(progress, f"points of {name}", qdrant.count(source.vectors, name))
    return transfer.copy_collection(source.vectors, target.vectors, name, advance=step)


def _copy_rows(source: Stores, target: Stores, run_id: UUID, progress: Progress) -> dict[str, int]:
    step = stage_steps(progress, "rows", transfer.count_rows(source.engine))
    with target.sessions.begin() as session:
        copied = transfer.copy_rows(source.engine, session.connection(), run_id, advance=step)
        runs.close_all(session, but=run_id)
    return copied
