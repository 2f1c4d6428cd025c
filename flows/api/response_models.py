"""What callers get, over HTTP as over MCP; the shapes are promises, whatever is inside may change."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from storage.postgres.request_queue import Kind, State


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
    """What is known of a record's image."""

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
