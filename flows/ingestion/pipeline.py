"""Taking in a whole source: name it, lock it, batch it, put the run on record. Knows no Prefect."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from time import perf_counter
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from embedding.encoders.sentence_encoder import Encoder
from embedding.images.worker_pool import Workers
from embedding.pipeline import Clock, ahead, behind
from flows.config.settings import Settings
from flows.ingestion.batches import EncodedBatch, PlannedBatch
from flows.ingestion.image_cache import ImageCache
from flows.ingestion.missing_items import (
    FIRST,
    USUAL_SHARE,
    DeleteLimit,
    Missing,
    Reading,
    Verdict,
    judge,
    left,
)
from flows.ingestion.report import COUNTS, BatchReport, IngestReport, as_report
from flows.ingestion.source_batches import BatchSize, IngestRun, Row, look_up, plan_rows, read_batches
from flows.ingestion.stages import Job, encode_batch, start_decoding, store_records, write_points
from flows.ingestion.throughput import speed_of
from flows.resources.collections import open_collection
from flows.resources.connections import Deps
from flows.resources.deletion import delete_missing, finish_deletes
from flows.tracking.progress import Progress, no_progress
from flows.tracking.retry_policy import HeldLock, hold, persist
from flows.tracking.run_log import Totals, tracked_run
from flows.tracking.tracing import stepping
from storage import qdrant
from storage.postgres import catalog, model_registry, runs
from storage.postgres.locks import source_lock
from storage.postgres.rejects import resolve_api_rejects, resolve_rejects
from storage.records import Ignored
from storage.sources import read_source, source_name

Step = Callable[[Callable[[], int]], int]
"""Has the model see some batches, and returns how many points that made; the flow's is a Prefect task."""

STEP_S = 5.0
"""How long a step goes on with batches: whoever watches the steps pays for each of them."""

OWN_BATCHES = 4
"""How many of the model's own batches of images make one of ours: enough to hide what each one costs."""


class EmptySource(ValueError):
    """A source without a single record, which is a wrong path more often than a wish."""


class OtherLocation(ValueError):
    """A source of this name was read from elsewhere before; `--name` says which is meant."""


class PartOfSource(ValueError):
    """A run that reads a part of its source cannot know what is missing from it."""


class LimitExceeded(RuntimeError):
    """A run has read its source to the end, and fails for what it found; what was good is kept.

    Attributes:
        report: of the run.
    """

    def __init__(self, message: str, report: IngestReport) -> None:
        super().__init__(message)
        self.report = report


class TooManyRejects(LimitExceeded):
    """More of the source was bad than the limit allows."""


class TooManyMissing(LimitExceeded):
    """More items are missing from the source than may be deleted at once; none was."""


@dataclass(frozen=True, slots=True)
class Only:
    """Which rows of a source are tried again: those of rejects, at these places or with these keys."""

    places: frozenset[str]
    keys: frozenset[str]

    def has(self, row: Row) -> bool:
        return row.place in self.places or (row.key is not None and row.key in self.keys)


@dataclass(frozen=True, slots=True)
class Request:
    """What a person, a schedule or a program asks for."""

    location: Path | None
    """Where the records are; None where they came with the request."""

    name: str | None = None
    langs: tuple[str, ...] | None = None
    limit: int | None = None
    delete_missing: bool = False
    revive: bool = False
    only: Only | None = None
    sent: tuple[Row, ...] = ()
    """Records that came with the request, to be added to those of source `name`; nobody reads them again."""

    max_delete: float = USUAL_SHARE
    """The share of the source's items that may be deleted because they are missing, in [0, 1]."""

    yes: bool = False
    """Whether any number of missing items may be deleted."""

    def __post_init__(self) -> None:
        """Refuse to delete what a run cannot know to be missing.

        Raises:
            PartOfSource: the run does not read all of its source.
        """
        if self.delete_missing and not (self.is_whole and self.limit is None):
            raise PartOfSource(
                "delete_missing needs the whole source: with a limit, a choice of rows or records that were "
                "sent, leave it out"
            )

    @property
    def flow(self) -> str:
        """What such a run is called on record."""
        if self.location is None:
            return runs.SENT
        return "ingest" if self.only is None else "retry"

    @property
    def is_whole(self) -> bool:
        """Whether all that the source has is read, or the beginning of it: then few of it may be bad."""
        return self.location is not None and self.only is None


def ingest_source(
    deps: Deps,
    settings: Settings,
    request: Request,
    *,
    step: Step = lambda work: work(),
    prefect_run_id: UUID | None = None,
    progress: Progress = no_progress,
) -> IngestReport:
    """Take in every record of a source; run it again to pick up changes.

    While the model sees one batch, the next ones are read, decoded and written to Postgres, and the points
    of the last one to Qdrant: each of these has a thread, and decoding has processes.

    Args:
        step: what has the model see some batches, in the thread that called this.
        progress: receives the rows read, once their batch is in both stores.

    Raises:
        BadSource: the location is no folder of images and no manifest.
        EmptySource: there is nothing in it; nothing is deleted for it either.
        Busy: another process writes this source, or has all sources for itself.
        RunClosed: the lock was lost with its connection, and another run began meanwhile.
        BadSettings: vectors are to be shortened to more than they have.
        WorkersFailed: no process that decodes images can be started.
        OtherLocation: the default name belongs to a source that was read elsewhere.
        ModelMismatch: the collection was made by another model.
        TooManyRejects: the share of rejects is above `settings.max_reject_share`.
        TooManyMissing: more is missing than the request lets it delete.
    """
    rows = rows_of(request)
    source = persist(partial(_name_of, deps, request), for_s=settings.retry_for_s)
    with hold(source_lock(deps.engine, source), for_s=settings.retry_for_s) as lock:
        collection = lock.persist(partial(open_collection, deps, settings))
        run = new_run(source, collection, settings, request)
        record = RunRecord(run, workers=settings.decode_workers)
        with tracked_run(
            deps.sessions,
            lock,
            request.flow,
            run_id=run.id,
            source=run.source,
            location=None if request.location is None else str(request.location.resolve()),
            options=options_of(run, request),
            prefect_run_id=prefect_run_id,
            progress=progress,
            totals=record.totals,
        ) as tracked:
            expected = lock.persist(partial(expected_of, deps, source, request))
            read = records_of(rows, record.besides, record.reading, request.only)
            wanted = islice(read, request.limit)
            with Workers(deps.encoder.preparation, settings.decode_workers) as workers:
                job = Job(deps, run, ImageCache(workers), record.clock)

                def tell(report: BatchReport) -> None:
                    record.done += report
                    record.clock.seconds["decode"] = workers.seconds
                    record.peak_device_mib = deps.encoder.peak_device_mib
                    tracked.progress("embed", record.done.counts["read"], expected)

                take_in(job, lock, wanted, batch_size(deps.encoder, settings), step, tell)
            if request.is_whole:
                refuse_empty(record.report("failed"), request)
                refuse_mostly_bad(record.report("failed"), settings.max_reject_share)
            elif request.only is not None and not record.reading.rows:
                raise EmptySource(empty(request))
            lock.persist(partial(finish, deps, request, record))
            refuse_many_missing(record.report("failed"), record.verdict)
    return record.report("completed")


def take_in(
    job: Job,
    lock: HeldLock,
    rows: Iterable[Row],
    size: BatchSize,
    step: Step,
    tell: Callable[[BatchReport], None],
) -> None:
    """Carry each batch of `rows` through all its steps, and `tell` what became of each, in order.

    Whatever fails ends the run where it is: batches that are further on are finished, others are not begun.
    """
    reports: deque[BatchReport] = deque()
    decoding, storing = stepping("batch: look", start_decoding), stepping("batch: keep", store_records)
    encoding, writing = stepping("batch: embed", encode_batch), stepping("batch: write", write_points)

    def finish(batch: EncodedBatch) -> None:
        reports.append(lock.persist(partial(writing, job, batch)))

    def tell_all() -> None:
        while reports:
            tell(reports.popleft())

    def encode(batches: Iterable[PlannedBatch], hand_on: Callable[[EncodedBatch], None]) -> int:
        points, end = 0, perf_counter() + STEP_S
        for batch in batches:
            encoded = encoding(job, batch)
            points += len(encoded.points)
            hand_on(encoded)
            tell_all()
            if perf_counter() >= end:
                break
        return points

    try:
        with (
            ahead(job.clock.reading("read", read_batches(job.run, rows, size))) as fetched,
            ahead(lock.persist(partial(decoding, job, batch)) for batch in fetched) as decoded,
            ahead(lock.persist(partial(storing, job, batch)) for batch in decoded) as planned,
            behind(finish) as hand_on,
        ):
            for first in planned:
                step(partial(encode, chain([first], planned), hand_on))
    finally:
        tell_all()


def batch_size(encoder: Encoder, settings: Settings) -> BatchSize:
    """Return the size of a batch: some batches of the model, within the setting."""
    return BatchSize(settings.batch_size, min(settings.batch_size, OWN_BATCHES * encoder.pictures_at_once))


def rows_of(request: Request) -> Iterator[Row | Ignored]:
    """Return what is to be taken in, row by row.

    Raises:
        BadSource: the location is no folder of images and no manifest.
    """
    return iter(request.sent) if request.location is None else read_source(request.location)


def expected_of(deps: Deps, source: str, request: Request) -> int:
    """Return how many records are to be expected: as many as the last time; 0 if nobody knows."""
    if request.location is None:
        return len(request.sent)
    if request.only is not None:
        return 0
    with deps.sessions() as session:
        before = runs.last_read_count(session, source)
    return before if request.limit is None else min(before, request.limit)


def _name_of(deps: Deps, request: Request) -> str:
    with deps.sessions() as session:
        return name_of(session, request)


def finish(deps: Deps, request: Request, record: "RunRecord") -> None:
    """Do what only a run that has read its source to the end can do; safe to repeat."""
    run = record.run
    if request.delete_missing:
        with deps.sessions() as session:
            missing = missing_of(session, run)
        record.verdict = judge(missing, record.reading, DeleteLimit(request.max_delete, request.yes))
        record.besides["not_deleted"] = record.verdict.leaves
    with deps.sessions.begin() as session:
        runs.require_running(session, run.id)
        if request.location is None:
            keys = [row.key for row in request.sent if row.key is not None]
            resolve_api_rejects(session, run.id, run.source, keys)
        elif request.limit is None:
            places = request.only.places if request.only else None
            whole = record.reading.doubt is None and not record.verdict.refused
            resolve_rejects(session, run.id, run.source, places, whole=whole)
    if record.verdict.deletes:
        for many in delete_missing(deps, run.source, run.id):
            record.besides["deleted"] += many
    for _ in finish_deletes(deps, run.source):
        pass


def missing_of(session: Session, run: IngestRun) -> Missing:
    """Return what the run, which has read all of its source, has not met of what the source had before."""
    before = runs.last_completed(session, run.source)
    return Missing(
        run.source,
        catalog.count_missing(session, run.source, run.id),
        catalog.count_known(session, run.source, before),
        tuple(catalog.missing_keys(session, run.source, run.id, FIRST)),
    )


def dry_run(engine: Engine, settings: Settings, request: Request) -> IngestReport:
    """Return what an ingest of the source would count, up to the image decoder; nothing is written.

    Everything happens in one transaction that is rolled back, and no model is loaded.
    """
    with Session(engine) as session:
        record = rehearse(session, settings, request)
        session.rollback()
    return record.report("dry run")


def rehearse(session: Session, settings: Settings, request: Request) -> "RunRecord":
    """Compare a source with what is stored; all that is written are the claims of a run that never is."""
    rows = rows_of(request)
    name = model_registry.active_collection(session) or "none yet"
    nowhere = qdrant.Collection(name, settings.model, "", dim=0)
    run = new_run(name_of(session, request), nowhere, settings, request)
    record = RunRecord(run)
    wanted = islice(records_of(rows, record.besides, record.reading), request.limit)
    for batch in read_batches(run, wanted, BatchSize(settings.batch_size, settings.batch_size)):
        record.done += plan_rows(session, run, batch, look_up(session, run, batch)).as_report()
    if request.delete_missing:
        record.verdict = foreseen(missing_of(session, run), request, record, settings)
        record.besides["deleted"] = record.verdict.deletes
        record.besides["not_deleted"] = record.verdict.leaves
    return record


def foreseen(missing: Missing, request: Request, record: "RunRecord", settings: Settings) -> Verdict:
    """Return what an ingest would do with missing items; one that would fail before deletes none."""
    try:
        refuse_empty(record.report("dry run"), request)
        refuse_mostly_bad(record.report("dry run"), settings.max_reject_share)
    except (EmptySource, TooManyRejects) as error:
        return left(missing, str(error))
    return judge(missing, record.reading, DeleteLimit(request.max_delete, request.yes))


def new_run(source: str, collection: qdrant.Collection, settings: Settings, request: Request) -> IngestRun:
    """Return a run that has not begun yet."""
    langs = settings.langs if request.langs is None else request.langs
    return IngestRun(uuid4(), source, collection, langs, settings.limits, request.revive)


def options_of(run: IngestRun, request: Request) -> dict[str, Any]:
    """Return what a schedule asks for again, when it reads the source once more."""
    asked = {"limit": request.limit, "delete_missing": request.delete_missing}
    return {"langs": list(run.langs)} | {name: value for name, value in asked.items() if value}


def name_of(session: Session, request: Request) -> str:
    """Return the source's name: the one that was given, else the folder's or file's own.

    Raises:
        OtherLocation: the own name is that of a source elsewhere, which this one would mix with.
    """
    if request.name is not None:
        return request.name
    if request.location is None:
        raise ValueError("records that come with a request need the name of their source")
    name = source_name(request.location)
    before = runs.last_location(session, name)
    if before not in (None, str(request.location.resolve())):
        raise OtherLocation(
            f"source {name!r} was read from {before} before; give this one its own name with --name, "
            f"or say --name {name} if it has moved"
        )
    return name


@dataclass(slots=True)
class RunRecord:
    """What a run has done so far, whether or not it gets to its end."""

    run: IngestRun
    done: BatchReport = field(default_factory=BatchReport)
    besides: Counter[str] = field(default_factory=Counter)
    """What no batch counts: files that were ignored, items that were deleted."""

    reading: Reading = field(default_factory=Reading)
    verdict: Verdict = field(default_factory=Verdict)
    """What was decided of missing items."""

    clock: Clock = field(default_factory=Clock)
    started: float = field(default_factory=perf_counter)

    peak_device_mib: float | None = None
    workers: int = 0

    def report(self, outcome: str) -> IngestReport:
        seconds = perf_counter() - self.started
        done = self.done + BatchReport(self.besides)
        speed = speed_of(
            self.clock.seconds,
            seconds=seconds,
            records=done.counts["read"],
            pictures=done.counts["pictures"],
            workers=self.workers,
            peak_device_mib=self.peak_device_mib,
        )
        return as_report(
            self.run.id,
            self.run.source,
            done,
            outcome=outcome,
            seconds=seconds,
            stages=self.clock.seconds,
            speed=speed,
            not_deleted_because=self.verdict.why,
        )

    def totals(self) -> Totals:
        report = self.report("running")
        counts = report.as_json()
        shown = {name: counts[name] for name in (*COUNTS, "reasons", "speed")}
        if self.verdict.why is not None:
            shown["not_deleted_because"] = self.verdict.why
        return Totals(shown, dict(report.stages))


def records_of(
    rows: Iterator[Row | Ignored], besides: Counter[str], reading: Reading, only: Only | None = None
) -> Iterator[Row]:
    """Yield what became a record or a reject, and count what did neither in `besides`.

    Args:
        reading: counts each of them, whether or not it is yielded.
    """
    for row in rows:
        if isinstance(row, Ignored):
            besides["ignored"] += 1
            continue
        reading.add(row)
        if only is None or only.has(row):
            yield row


def refuse_empty(report: IngestReport, request: Request) -> None:
    """Raise `EmptySource` if nothing was read."""
    if not report.read:
        raise EmptySource(empty(request))


def empty(request: Request) -> str:
    """Say that there is nothing in a source."""
    return f"{request.location}: no record in it; is it the right folder or file?"


def refuse_mostly_bad(report: IngestReport, max_share: float) -> None:
    """Raise `TooManyRejects` if more than `max_share` of what was read is bad."""
    if report.rejected > max_share * report.read:
        reason, many = max(report.reasons.items(), key=lambda entry: (entry[1], entry[0]))
        raise TooManyRejects(
            f"{report.rejected:,} of {report.read:,} records were rejected, {many:,} of them as {reason}; "
            f"the other {report.read - report.rejected:,} are kept; see: sightline rejects",
            report,
        )


def refuse_many_missing(report: IngestReport, verdict: Verdict) -> None:
    """Raise `TooManyMissing` if more is missing than may be deleted."""
    if verdict.refused:
        raise TooManyMissing(verdict.why or "", report)
