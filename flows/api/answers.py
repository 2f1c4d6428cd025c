"""What callers get, over HTTP as over MCP; the shapes are promises, whatever is inside may change."""

from datetime import UTC, datetime
from time import perf_counter
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from flows.api.asked import SearchRequest
from flows.api.problems import Refusal
from flows.backend import AWAY, Backend
from flows.observe import Observation
from flows.search import Found, search
from storage import catalog, registry, requests
from storage.records import Digest, Item
from storage.requests import Kind, Receipt, State
from storage.runs import Run


class Hit(BaseModel):
    """One record that was found."""

    id: UUID
    key: str
    source: str
    score: float = Field(description="The cosine; comparable within one search, not between models.")
    text: str = Field(description="The text that matched best, or the one that stands for the record.")
    uri: str | None = Field(description="Where the picture came from; null without one.")
    metadata: dict[str, JsonValue]


class SearchAnswer(BaseModel):
    """What was found, best first, and where."""

    hits: list[Hit]
    model: str = Field(description="What encoded the query.")
    collection: str
    took_ms: float


class TextAnswer(BaseModel):
    """A text of a record."""

    text: str
    lang: str | None
    embedded: bool = Field(description="Whether searches compare it.")


class PictureAnswer(BaseModel):
    """What is known of a record's picture."""

    sha256: str
    uri: str = Field(description="Where it came from; `sha256:…` where it came with the record.")
    width: int
    height: int
    format: str
    kept: bool = Field(description="Whether its bytes are kept here, or its URI alone.")


class RecordAnswer(BaseModel):
    """One record."""

    id: UUID
    source: str
    key: str
    texts: list[TextAnswer]
    picture: PictureAnswer | None
    metadata: dict[str, JsonValue]
    searchable: bool = Field(description="Whether searches find it as it is now.")


class RejectAnswer(BaseModel):
    """A record that could not be taken in."""

    key: str | None
    reason: str = Field(description="A code to count by.")
    message: str = Field(description="What is wrong and what helps.")


class ReceiptAnswer(BaseModel):
    """A request, and what became of it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "0b6d3c1e-2f5e-4a38-9a55-1f4f6f4f0a11",
                    "kind": "ingest",
                    "source": "shop",
                    "state": "done",
                    "accepted": "2026-03-01T12:00:00Z",
                    "started": "2026-03-01T12:00:01Z",
                    "ended": "2026-03-01T12:00:02Z",
                    "run": "6f9619ff-8b86-4d01-b42d-00cf4fc964ff",
                    "counts": {"read": 2, "embedded": 1, "rejected": 1},
                    "rejects": [
                        {
                            "key": "4712",
                            "reason": "empty_record",
                            "message": "sent: 4712: neither text nor image",
                        }
                    ],
                    "problem": None,
                }
            ]
        }
    )

    id: UUID
    kind: Kind
    source: str | None
    state: State
    accepted: datetime
    started: datetime | None
    ended: datetime | None
    run: UUID | None = Field(description="The run that took the records in.")
    counts: dict[str, JsonValue] = Field(
        description=(
            "Of an ingest: `read` is the sum of `unchanged`, `embedded`, `updated`, `rejected` and "
            "`still_deleted`. Of a delete: items, points, marks, rejects and pictures that went."
        )
    )
    rejects: list[RejectAnswer]
    problem: str | None = Field(description="Why it failed, or what it waits for.")


class StoreAnswer(BaseModel):
    """A store; of one that is away, why and what helps."""

    answers: bool
    problem: str | None


class RunningAnswer(BaseModel):
    """A run that goes on."""

    id: UUID
    flow: str
    source: str | None
    started: datetime
    stage: str | None
    done: int | None
    total: int | None = Field(description="0 where nobody knows.")
    remaining_s: float | None


class FailedAnswer(BaseModel):
    """The last run of a flow or of its source, where that failed."""

    flow: str
    source: str | None
    outcome: str
    ended: datetime | None
    why: str


class QueueAnswer(BaseModel):
    """What was accepted and is not carried out yet."""

    waiting: int
    oldest: datetime | None


class RecordsAnswer(BaseModel):
    """How many records there are."""

    stored: int
    searchable: int
    waiting: int = Field(description="Stored, and not or not yet searchable as they are.")
    waiting_s: float = Field(description="How long the oldest of them has waited.")
    rejects: int = Field(description="Records that could not be taken in, and are open still.")


class StatusAnswer(BaseModel):
    """What was seen at the last look at everything."""

    state: Literal["ok", "degraded"] = Field(
        description="degraded: a store is away, or a flow's last run failed."
    )
    at: datetime
    postgres: StoreAnswer
    qdrant: StoreAnswer
    collection: str | None = Field(description="Where searches go; null before the first ingest.")
    model: str | None
    points: int | None
    records: RecordsAnswer | None
    queue: QueueAnswer | None
    running: list[RunningAnswer]
    failed: list[FailedAnswer]
    disk_free_bytes: int


def found(backend: Backend, asked: SearchRequest) -> SearchAnswer:
    """Search.

    Raises:
        AWAY, NoCollection, ModelUnavailable, ModelMismatch: as `Backend.searching`.
        BadImage: the picture cannot be shown to a model.
        UnexpectedResponse: Qdrant does not take a condition.
    """
    started = perf_counter()
    with backend.searching() as deps:
        results = search(deps, asked.as_query(backend.settings.qdrant.oversampling))
    hits = [_hit(one) for one in results.found]
    took_ms = round((perf_counter() - started) * 1000, 1)
    return SearchAnswer(hits=hits, model=results.model, collection=results.collection, took_ms=took_ms)


def record(backend: Backend, id: UUID) -> RecordAnswer:
    """Return one record.

    Raises:
        Refusal: 404, there is none.
        AWAY: Postgres does not answer.
    """
    with backend.sessions() as sessions, sessions() as session:
        item, digest = living(catalog.items_with_digests(session, [id]), id)
        collection = registry.active_collection(session)
        kept = [] if collection is None else catalog.kept(session, collection, ids=[id])
    is_kept = backend.settings.keep_pictures
    return _record(item, searchable=any(one.mark == digest for one in kept), is_kept=is_kept)


def living(items: dict[UUID, tuple[Item, Digest]], id: UUID) -> tuple[Item, Digest]:
    """Return the record `id` of those that were found.

    Raises:
        Refusal: 404, it is not among them.
    """
    if id not in items:
        raise Refusal(404, f"there is no record {id}")
    return items[id]


def status(backend: Backend, seen: Observation) -> StatusAnswer:
    """Return what was seen last, and how much waits now."""
    catalogued, indexed = seen.catalogued, seen.indexed
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
    """Return a receipt as callers get it."""
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


def _hit(one: Found) -> Hit:
    item: dict[str, Any] = one.as_json() | {"metadata": dict(one.item.metadata)}
    return Hit(**item)


def _record(item: Item, *, searchable: bool, is_kept: bool) -> RecordAnswer:
    own = item.picture
    picture = None
    if own is not None:
        picture = PictureAnswer(
            sha256=own.sha256,
            uri=own.uri,
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
            backlog = requests.backlog(session)
    except AWAY:
        return None  # the answer says that Postgres is away
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
    why = (run.error or "its process ended without a word").strip().splitlines()[0]
    return FailedAnswer(flow=run.flow, source=run.source, outcome=run.outcome, ended=run.ended, why=why)
