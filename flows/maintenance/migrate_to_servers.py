"""Moving what a home holds into servers: nothing is embedded again, and the home stays as it is."""

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
    """There is no embedded home, or no servers are named to move it into."""


class MoveFailed(SightlineError):
    """What the servers hold is not what the home holds."""


@dataclass(slots=True)
class MoveResult:
    """What a move has copied, and how the servers compare."""

    home: Path
    stays: tuple[Path, ...]
    """What goes on being used in the home."""

    pictures: int = 0
    """Those that the place of SIGHTLINE_PICTURES_URL lacked."""

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
    """Copy what the embedded stores of the home hold into the servers that `settings` name.

    A move that was interrupted goes on when it is run again. Fine-tuned models and receipts stay in the
    home, and images do unless `settings` name another place for them.

    Raises:
        NothingToMove: a server is not named, or there is nothing in the home.
        NotEmpty: the servers hold something else.
        AlreadyMoved: this was done before.
        Busy: another process writes to the home or to the servers.
        MoveFailed: the servers do not hold the same in the end.
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


def move(source: Stores, target: Stores, settings: Settings, *, progress: Progress = no_progress) -> MoveResult:
    """Copy what `source` holds to `target`, and compare; see `move_to_servers`.

    Images and points come before the rows that promise them, and the alias that searches go through comes
    last, so that half a move is never taken for a whole one.
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
            raise MoveFailed(f"the servers do not hold what the home does: {damage_of(moved.report)}")
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
    """Copy every collection; return how many points each has."""
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
