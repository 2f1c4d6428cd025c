"""Answer read requests, for HTTP and MCP alike."""

from datetime import UTC, datetime
from time import perf_counter
from uuid import UUID

from flows.api.problems import ApiError
from flows.api.request_models import SearchRequest
from flows.api.response_models import (
    FailedAnswer,
    Hit,
    PictureAnswer,
    QueueAnswer,
    ReceiptAnswer,
    RecordAnswer,
    RecordsAnswer,
    RejectAnswer,
    RunningAnswer,
    SearchAnswer,
    StatusAnswer,
    StoreAnswer,
    TextAnswer,
)
from flows.search.query import FoundItem, search
from flows.service.observer import Observation
from flows.service.pool import Backend
from storage.errors import StoreUnavailable
from storage.postgres import catalog, model_registry, request_queue
from storage.postgres.request_queue import Receipt
from storage.postgres.runs import Run
from storage.records import Digest, Item
from storage.redaction import redacted


def search_answer(backend: Backend, request: SearchRequest) -> SearchAnswer:
    """Search, and return the hits.

    Raises:
        StoreUnavailable, NoCollection, ModelUnavailable, ModelMismatch: as `Backend.searching`.
        BadImage: the image cannot be decoded.
        UnexpectedResponse: Qdrant rejects a condition.
    """
    started = perf_counter()
    with backend.searching() as deps:
        results = search(deps, request.as_query(backend.settings.qdrant.oversampling))
    hits = [_hit(one) for one in results.found]
    took_ms = round((perf_counter() - started) * 1000, 1)
    return SearchAnswer(hits=hits, model=results.model, collection=results.collection, took_ms=took_ms)


def record_answer(backend: Backend, id: UUID) -> RecordAnswer:
    """Return one record.

    Raises:
        ApiError: 404, there is no such record.
        StoreUnavailable: Postgres is unavailable.
    """
    with backend.sessions() as sessions, sessions() as session:
        item, digest = living_item(catalog.items_with_digests(session, [id]), id)
        collection = model_registry.active_collection(session)
        entries = [] if collection is None else catalog.entries(session, collection, ids=[id])
    is_kept = backend.settings.keep_pictures
    return _record(item, searchable=any(one.mark == digest for one in entries), is_kept=is_kept)


def living_item(items: dict[UUID, tuple[Item, Digest]], id: UUID) -> tuple[Item, Digest]:
    """Return the record `id` among those that were read.

    Raises:
        ApiError: 404, it is not among them.
    """
    if id not in items:
        raise ApiError(404, f"there is no record {id}")
    return items[id]


def status_answer(backend: Backend, seen: Observation) -> StatusAnswer:
    """Return the last observation, and the queue's current backlog."""
    catalogued, indexed = seen.catalog, seen.index
    failed = () if catalogued is None else catalogued.failed
    away = seen.postgres_problem or seen.qdrant_problem
    collection = None if indexed is None else indexed.collection
    now = datetime.now(UTC)
    records = None
    if catalogued is not None:
        own = catalogued.figures
        records = RecordsAnswer(
            stored=own.items,
            searchable=own.searchable,
            waiting=own.pending,
            waiting_s=own.age_s(now),
            rejects=catalogued.open_rejects,
        )
    return StatusAnswer(
        state="degraded" if away or failed else "ok",
        at=seen.at,
        postgres=StoreAnswer(answers=seen.postgres_problem is None, problem=seen.postgres_problem),
        qdrant=StoreAnswer(answers=seen.qdrant_problem is None, problem=seen.qdrant_problem),
        collection=None if collection is None else collection.name,
        model=None if collection is None else collection.model,
        points=None if indexed is None else indexed.points,
        records=records,
        queue=_queue(backend),
        running=[_running(run, now) for run in (() if catalogued is None else catalogued.running)],
        failed=[_failed(run) for run in failed],
        disk_free_bytes=seen.disk_free_bytes,
    )


def receipt_answer(receipt: Receipt) -> ReceiptAnswer:
    """Return the API document of a receipt."""
    return ReceiptAnswer(
        id=receipt.id,
        kind=receipt.kind,
        source=receipt.source,
        state=receipt.state,
        accepted=receipt.accepted,
        started=receipt.started,
        ended=receipt.ended,
        run=receipt.run_id,
        counts=dict(receipt.counts),
        rejects=[RejectAnswer(**one) for one in receipt.rejects],
        problem=receipt.problem,
    )


def _hit(one: FoundItem) -> Hit:
    return Hit(**one.as_json())


def _record(item: Item, *, searchable: bool, is_kept: bool) -> RecordAnswer:
    own = item.image
    picture = None
    if own is not None:
        picture = PictureAnswer(
            sha256=own.sha256,
            uri=redacted(own.uri),
            width=own.width,
            height=own.height,
            format=own.format,
            kept=is_kept,
        )
    return RecordAnswer(
        id=item.id,
        source=item.source,
        key=item.key,
        texts=[TextAnswer(text=one.text, lang=one.lang, embedded=one.embedded) for one in item.texts],
        picture=picture,
        metadata=dict(item.metadata),
        searchable=searchable,
    )


def _queue(backend: Backend) -> QueueAnswer | None:
    try:
        with backend.sessions() as sessions, sessions() as session:
            backlog = request_queue.backlog(session)
    except StoreUnavailable:
        return None  # the answer says that Postgres is unavailable
    return QueueAnswer(waiting=backlog.many, oldest=backlog.oldest)


def _running(run: Run, now: datetime) -> RunningAnswer:
    progress = run.progress
    return RunningAnswer(
        id=run.id,
        flow=run.flow,
        source=run.source,
        started=run.started,
        stage=None if progress is None else progress.stage,
        done=None if progress is None else progress.done,
        total=None if progress is None else progress.total,
        remaining_s=None if progress is None else progress.remaining_s(now),
    )


def _failed(run: Run) -> FailedAnswer:
    why = (run.error or "its process ended without an error message").strip().splitlines()[0]
    return FailedAnswer(
        id=run.id, flow=run.flow, source=run.source, outcome=run.outcome, ended=run.ended, why=why
    )
