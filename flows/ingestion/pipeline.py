"""Ingest a whole source under its lock, with its run on record."""

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain, islice
from time import perf_counter
from uuid import UUID

from sqlalchemy.orm import Session

from embedding.encoders.sentence_encoder import Encoder
from embedding.images.worker_pool import Workers
from embedding.pipeline import in_background, prefetch
from flows.config.settings import Settings
from flows.ingestion.batches import EncodedBatch, PlannedBatch
from flows.ingestion.image_cache import ImageCache
from flows.ingestion.missing_items import EXAMPLES, DeleteLimit, MissingItems, decide
from flows.ingestion.report import BatchReport, IngestReport
from flows.ingestion.request import Request
from flows.ingestion.run_state import RunState, check_missing, check_rejects, check_rows_read
from flows.ingestion.source_batches import BatchSize, IngestRun, Row, read_batches
from flows.ingestion.stages import Job, encode_batch, start_decoding, store_records, write_points
from flows.resources.collections import open_collection
from flows.resources.connections import Deps
from flows.resources.deletion import delete_missing, finish_deletes
from flows.tracking.progress import Progress, no_progress
from flows.tracking.retry_policy import HeldLock, hold, persist
from flows.tracking.run_log import tracked_run
from flows.tracking.tracing import stepping
from storage.postgres import catalog, runs
from storage.postgres.locks import source_lock
from storage.postgres.rejects import resolve_api_rejects, resolve_rejects
from storage.records import Ignored
from storage.sources.row_estimate import RowEstimate

Step = Callable[[Callable[[], int]], int]
"""Run a function that encodes some batches and returns the number of their points.

The flow's step is a Prefect task.
"""

STEP_S = 5.0
"""Duration of a step: each one has a cost in Prefect."""

MODEL_BATCHES = 4
"""Image batches of the model in one batch of a run: enough to hide the fixed cost of each."""


def ingest_source(
    deps: Deps,
    settings: Settings,
    request: Request,
    *,
    step: Step = lambda work: work(),
    prefect_run_id: UUID | None = None,
    progress: Progress = no_progress,
) -> IngestReport:
    """Ingest every record of a source; a repeated run ingests the changes.

    While the model encodes one batch, the next ones are read, decoded and written to Postgres, and the
    points of the last one to Qdrant: each of these has a thread, and decoding has processes.

    Args:
        step: runs the encoding of some batches, in the thread of the caller.
        progress: receives the rows read, once their batch is in both stores.

    Raises:
        BadSource: the location is no folder of images and no manifest.
        EmptySource: there is nothing in it; nothing is deleted for it either.
        Busy: another process writes this source, or holds the exclusive lock.
        RunClosed: the lock was lost with its connection, and another run began meanwhile.
        BadSettings: vectors are to be shortened to more dimensions than they have.
        WorkersFailed: no process that decodes images can be started.
        OtherLocation: the default name belongs to a source that was read elsewhere.
        ModelMismatch: the collection was made by another model.
        TooManyRejects: the share of rejects is above `settings.max_reject_share`.
        TooManyMissing: more is missing than the request lets it delete.
    """
    estimate = RowEstimate()
    rows = request.rows(estimate)
    source = persist(partial(_source, deps, request), for_s=settings.retry_for_s)
    with hold(source_lock(deps.engine, source), for_s=settings.retry_for_s) as lock:
        collection = lock.persist(partial(open_collection, deps, settings))
        run = request.new_run(source, collection, settings)
        state = RunState(
            run, workers=settings.decode_workers, keeps_excluded=request.delete_missing and not request.yes
        )
        with tracked_run(
            deps.sessions,
            lock,
            request.flow,
            run_id=run.id,
            source=run.source,
            location=None if request.location is None else str(request.location.resolve()),
            options=request.options(run),
            prefect_run_id=prefect_run_id,
            progress=progress,
            totals=state.totals,
        ) as tracked:
            expected = lock.persist(partial(_expected_rows, deps, request, source))
            wanted = islice(state.count_rows(rows, request.only), request.limit)
            with Workers(deps.encoder.preparation, settings.decode_workers) as workers:
                job = Job(deps, run, ImageCache(workers), state.clock)

                def add(report: BatchReport) -> None:
                    state.done += report
                    state.clock.seconds["decode"] = workers.seconds
                    state.peak_device_mib = deps.encoder.peak_device_mib
                    total = expected
                    if not total and request.is_whole:
                        total = request.at_most(estimate.total(state.coverage.rows))
                    tracked.progress("embed", state.done.counts["read"], total)

                run_batches(job, lock, wanted, batch_size(deps.encoder, settings), step, add)
            if request.is_whole:
                check_rows_read(state.report("failed"), request)
                check_rejects(state.report("failed"), settings.max_reject_share)
            elif request.only is not None and not state.coverage.rows:
                check_rows_read(state.report("failed"), request)
            lock.persist(partial(finish, deps, request, state))
            check_missing(state.report("failed"), state.decision)
    return state.report("completed")


def run_batches(
    job: Job,
    lock: HeldLock,
    rows: Iterable[Row | Ignored],
    size: BatchSize,
    step: Step,
    add: Callable[[BatchReport], None],
) -> None:
    """Run all stages of each batch, and `add` its report, in order.

    A failure ends the run: batches in later stages are finished, no other is begun.
    """
    reports: deque[BatchReport] = deque()
    decoding, storing = stepping("batch: look", start_decoding), stepping("batch: keep", store_records)
    encoding, writing = stepping("batch: embed", encode_batch), stepping("batch: write", write_points)

    def write(batch: EncodedBatch) -> None:
        reports.append(lock.persist(partial(writing, job, batch)))

    def add_all() -> None:
        while reports:
            add(reports.popleft())

    def encode(batches: Iterable[PlannedBatch], hand_on: Callable[[EncodedBatch], None]) -> int:
        points, end = 0, perf_counter() + STEP_S
        for batch in batches:
            encoded = encoding(job, batch)
            points += len(encoded.points)
            hand_on(encoded)
            add_all()
            if perf_counter() >= end:
                break
        return points

    try:
        with (
            prefetch(job.clock.reading("read", read_batches(job.run, rows, size))) as fetched,
            prefetch(lock.persist(partial(decoding, job, batch)) for batch in fetched) as decoded,
            prefetch(lock.persist(partial(storing, job, batch)) for batch in decoded) as planned,
            in_background(write) as hand_on,
        ):
            for first in planned:
                step(partial(encode, chain([first], planned), hand_on))
    finally:
        add_all()


def batch_size(encoder: Encoder, settings: Settings) -> BatchSize:
    """Return the size of a batch, in rows and images."""
    images = min(settings.batch_size, MODEL_BATCHES * encoder.images_per_chunk)
    return BatchSize(settings.batch_size, images)


def finish(deps: Deps, request: Request, state: RunState) -> None:
    """Resolve rejects and delete missing items, at the end of the source.

    Safe to repeat.
    """
    run = state.run
    if request.delete_missing:
        with deps.sessions() as session:
            missing = find_missing(session, run)
        state.decision = decide(missing, state.coverage, DeleteLimit(request.max_delete, request.yes))
        state.extra["not_deleted"] = state.decision.leaves
    with deps.sessions.begin() as session:
        runs.require_running(session, run.id)
        if request.location is None:
            keys = [row.key for row in request.sent if row.key is not None]
            resolve_api_rejects(session, run.id, run.source, keys)
        elif request.limit is None:
            places = request.only.places if request.only else None
            whole = state.coverage.doubt is None and not state.decision.exceeds_limit
            resolve_rejects(session, run.id, run.source, places, whole=whole)
    if state.decision.deletes:
        for count in delete_missing(deps, run.source, run.id):
            state.extra["deleted"] += count
    for _ in finish_deletes(deps, run.source):
        pass


def find_missing(session: Session, run: IngestRun) -> MissingItems:
    """Return the items that a run of its whole source missed."""
    before = runs.last_completed(session, run.source)
    return MissingItems(
        run.source,
        catalog.count_missing(session, run.source, run.id),
        catalog.count_known(session, run.source, before),
        tuple(catalog.missing_keys(session, run.source, run.id, EXAMPLES)),
    )


def _source(deps: Deps, request: Request) -> str:
    with deps.sessions() as session:
        return request.source(session)


def _expected_rows(deps: Deps, request: Request, source: str) -> int:
    with deps.sessions() as session:
        return request.expected_rows(session, source)
