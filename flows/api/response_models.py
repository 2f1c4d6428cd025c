"""Define the documents that API and MCP callers receive.

Their shapes are stable; the modules behind them may change.
"""

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from storage.postgres.request_queue import Kind, State


class Hit(BaseModel):
    """Represent one hit of a search."""

    id: UUID
    key: str
    source: str
    score: float = Field(description="Cosine similarity; comparable within one search, not between models.")
    text: str = Field(description="The best matching text, or the record's first text.")
    uri: str | None = Field(description="URI of the image's origin; null without an image.")
    metadata: dict[str, JsonValue]


class SearchAnswer(BaseModel):
    """Represent the hits of a search, best first, and their origin."""

    hits: list[Hit]
    model: str = Field(description="Name of the model that encoded the query.")
    collection: str
    took_ms: float


class TextAnswer(BaseModel):
    """Represent a text of a record."""

    text: str
    lang: str | None
    embedded: bool = Field(description="Whether it is embedded, and so searchable.")


class PictureAnswer(BaseModel):
    """Represent the properties of a record's image."""

    sha256: str
    uri: str = Field(description="URI of its origin; `sha256:…` if it was sent with the record.")
    width: int
    height: int
    format: str
    kept: bool = Field(description="Whether its bytes are stored here, or its URI alone.")


class RecordAnswer(BaseModel):
    """Represent one record."""

    id: UUID
    source: str
    key: str
    texts: list[TextAnswer]
    picture: PictureAnswer | None
    metadata: dict[str, JsonValue]
    searchable: bool = Field(description="Whether searches find its current version.")


class RejectAnswer(BaseModel):
    """Represent a rejected record."""

    key: str | None
    reason: str = Field(description="Reason code.")
    message: str = Field(description="The cause and the remedy.")


class ReceiptAnswer(BaseModel):
    """Represent a queued request and its outcome."""

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
    run: UUID | None = Field(description="The ingest run.")
    counts: dict[str, JsonValue] = Field(
        description=(
            "Of an ingest: `read` is the sum of `unchanged`, `embedded`, `updated`, `rejected` and "
            "`still_deleted`. Of a delete: items, points, marks, rejects and pictures that were deleted."
        )
    )
    rejects: list[RejectAnswer]
    problem: str | None = Field(description="Why it failed, or why it waits.")


class StoreAnswer(BaseModel):
    """Represent the availability of a store, with the remedy if unavailable."""

    answers: bool
    problem: str | None


class RunningAnswer(BaseModel):
    """Represent a run in progress."""

    id: UUID
    flow: str
    source: str | None
    started: datetime
    stage: str | None
    done: int | None
    total: int | None = Field(description="0 if unknown.")
    remaining_s: float | None


class FailedAnswer(BaseModel):
    """Represent the failed last run of a flow or source."""

    id: UUID
    flow: str
    source: str | None
    outcome: str
    ended: datetime | None
    why: str


class QueueAnswer(BaseModel):
    """Represent the backlog of accepted requests."""

    waiting: int
    oldest: datetime | None


class RecordsAnswer(BaseModel):
    """Represent record counts."""

    stored: int
    searchable: int
    waiting: int = Field(description="Stored records whose current version is not searchable yet.")
    waiting_s: float = Field(description="Age of the oldest of them, in seconds.")
    rejects: int = Field(description="Open rejected records.")


class StatusAnswer(BaseModel):
    """Represent the last observation of the stores and of the queue."""

    state: Literal["ok", "degraded"] = Field(
        description="degraded: a store is unavailable, or a flow's last run failed and is not acknowledged."
    )
    at: datetime
    postgres: StoreAnswer
    qdrant: StoreAnswer
    collection: str | None = Field(description="Active collection; null before the first ingest.")
    model: str | None
    points: int | None
    records: RecordsAnswer | None
    queue: QueueAnswer | None
    running: list[RunningAnswer]
    failed: list[FailedAnswer]
    disk_free_bytes: int
