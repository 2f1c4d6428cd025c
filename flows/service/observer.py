"""One look at everything for those who watch, and the thread that keeps looking.

The console, the API and the metrics show what was seen last, and when that was: a page costs no scan of the
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
LEAST_PAUSE_S = 5.0
PAUSE_SHARE = 20
"""A look that takes a second is followed by so many seconds without one."""


@dataclass(frozen=True, slots=True)
class Catalogued:
    """What Postgres says."""

    collection: str | None
    """The one that searches go to."""

    figures: Figures
    rejects: tuple[RejectCount, ...]
    running: tuple[Run, ...]
    last_runs: tuple[Run, ...]
    """Of each flow."""

    failed: tuple[Run, ...]
    """The last run of a flow, and of a source where it has one, that ended otherwise than completed."""

    days: tuple[Day, ...]
    evaluation: tuple[EvaluationFigure, ...]
    """The last one of the collection."""

    totals: Totals

    @property
    def open_rejects(self) -> int:
        return sum(one.many for one in self.rejects)


@dataclass(frozen=True, slots=True)
class Indexed:
    """What Qdrant says."""

    collection: qdrant.Collection | None
    """The one that searches go to; None before the first ingest."""

    points: int


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen. Of a store that is away there is a problem instead: a sentence with the remedy."""

    at: datetime
    took_s: float
    catalogued: Catalogued | None
    postgres_problem: str | None
    indexed: Indexed | None
    qdrant_problem: str | None
    disk_free_bytes: int
    """Where the home is."""

    disk_bytes: int


def observe(backend: Backend) -> Observation:
    """Look at Postgres, at Qdrant and at the disk."""
    at, started = datetime.now(UTC), perf_counter()
    catalogued, indexed = None, None
    postgres_problem = qdrant_problem = None
    try:
        with backend.sessions() as sessions, sessions() as session:
            catalogued = look_at_catalog(session, at)
    except StoreUnavailable as error:
        postgres_problem = str(error)
    try:
        with backend.vectors() as client:
            collection = qdrant.active_collection(client)
            indexed = Indexed(collection, 0 if collection is None else qdrant.count(client, collection.name))
    except StoreUnavailable as error:
        qdrant_problem = str(error)
    disk = shutil.disk_usage(backend.settings.home)
    return Observation(
        at,
        perf_counter() - started,
        catalogued,
        postgres_problem,
        indexed,
        qdrant_problem,
        disk.free,
        disk.total,
    )


def look_at_catalog(session: Session, now: datetime) -> Catalogued:
    """Return what Postgres says; one statement for each thing, whatever the number of records."""
    collection = model_registry.active_collection(session)
    return Catalogued(
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
    """Keeps the last observation of a backend; a thread looks again and again, and sooner when asked to."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._changed = Condition()
        self._seen: Observation | None = None
        self._asked = self._ended = False

    @property
    def seen(self) -> Observation:
        """What was seen last; the first time somebody asks, it is looked at now."""
        if self._seen is None:
            self._seen = observe(self.backend)
        return self._seen

    def look_again(self) -> None:
        """Have the thread look now: something was just done that will show."""
        with self._changed:
            self._asked = True
            self._changed.notify_all()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Keep looking for as long as this is open."""
        thread = Thread(target=self._keep_looking, name="observer", daemon=True)
        thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            thread.join()

    def _keep_looking(self) -> None:
        while not self._ended:
            seen = observe(self.backend)
            self._seen = seen
            with self._changed:
                pause_s = max(LEAST_PAUSE_S, PAUSE_SHARE * seen.took_s)
                self._changed.wait_for(lambda: self._asked or self._ended, timeout=pause_s)
                self._asked = False
