"""Observe the stores in a background thread.

The console, the API and the metrics show the latest observation, and its time: a page costs no scan of the
tables, however many records there are and however many people watch.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Condition, Thread
from time import perf_counter

from sqlalchemy.orm import Session

from flows.service.pool import Backend
from storage import qdrant
from storage.errors import StoreUnavailable
from storage.postgres import model_registry, runs, statistics
from storage.postgres.run_totals import Totals, totals
from storage.postgres.runs import Run
from storage.postgres.statistics import Day, EvaluationFigure, Figures, RejectCount

DAYS = 30
MIN_PAUSE_S = 5.0
PAUSE_SHARE = 20
"""Seconds of pause for each second that an observation takes."""


@dataclass(frozen=True, slots=True)
class CatalogStatus:
    """Hold the state of the catalog in Postgres."""

    collection: str | None
    """The active one."""

    figures: Figures
    rejects: tuple[RejectCount, ...]
    running: tuple[Run, ...]
    last_runs: tuple[Run, ...]
    """The last run of each flow."""

    failed: tuple[Run, ...]
    """Last runs, by flow and source, that did not complete."""

    days: tuple[Day, ...]
    evaluation: tuple[EvaluationFigure, ...]
    """The last evaluation of the collection."""

    totals: Totals

    @property
    def open_rejects(self) -> int:
        return sum(one.many for one in self.rejects)


@dataclass(frozen=True, slots=True)
class IndexStatus:
    """Hold the state of the active collection in Qdrant."""

    collection: qdrant.Collection | None
    """None before the first ingest."""

    points: int


@dataclass(frozen=True, slots=True)
class Observation:
    """Hold the state of the stores and the disk at one time.

    An unavailable store has a problem instead: a sentence with the remedy.
    """

    at: datetime
    took_s: float
    catalog: CatalogStatus | None
    postgres_problem: str | None
    index: IndexStatus | None
    qdrant_problem: str | None
    disk_free_bytes: int
    """Free space of the disk of the data directory."""

    disk_bytes: int


def observe(backend: Backend) -> Observation:
    """Read the state of Postgres, of Qdrant and of the disk."""
    at, started = datetime.now(UTC), perf_counter()
    catalog, index = None, None
    postgres_problem = qdrant_problem = None
    try:
        with backend.sessions() as sessions, sessions() as session:
            catalog = read_catalog_status(session, at)
    except StoreUnavailable as error:
        postgres_problem = str(error)
    try:
        with backend.vectors() as client:
            collection = qdrant.active_collection(client)
            points = 0 if collection is None else qdrant.count(client, collection.name)
            index = IndexStatus(collection, points)
    except StoreUnavailable as error:
        qdrant_problem = str(error)
    disk = shutil.disk_usage(backend.settings.home)
    return Observation(
        at,
        perf_counter() - started,
        catalog,
        postgres_problem,
        index,
        qdrant_problem,
        disk.free,
        disk.total,
    )


def read_catalog_status(session: Session, now: datetime) -> CatalogStatus:
    """Read the state of the catalog, with a fixed number of statements."""
    collection = model_registry.active_collection(session)
    return CatalogStatus(
        collection,
        statistics.figures(session, collection),
        tuple(statistics.count_rejects(session)),
        tuple(runs.running(session)),
        tuple(runs.last_runs(session)),
        tuple(runs.failed_runs(session)),
        tuple(statistics.days(session, now, DAYS)),
        tuple(statistics.last_evaluation(session, collection)),
        totals(session),
    )


class Observer:
    """Observe a backend at intervals, and keep the latest observation."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._changed = Condition()
        self._latest: Observation | None = None
        self._requested = self._ended = False

    @property
    def latest(self) -> Observation:
        """Return the latest observation; the first call makes one."""
        if self._latest is None:
            self._latest = observe(self.backend)
        return self._latest

    def refresh(self) -> None:
        """Request an observation now, after a change that should show."""
        with self._changed:
            self._requested = True
            self._changed.notify_all()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Observe in a thread for as long as the context is open."""
        thread = Thread(target=self._observe_at_intervals, name="observer", daemon=True)
        thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            thread.join()

    def _observe_at_intervals(self) -> None:
        while not self._ended:
            seen = observe(self.backend)
            self._latest = seen
            with self._changed:
                pause_s = max(MIN_PAUSE_S, PAUSE_SHARE * seen.took_s)
                self._changed.wait_for(lambda: self._requested or self._ended, timeout=pause_s)
                self._requested = False
