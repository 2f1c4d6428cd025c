"""Define and validate the requests of API callers."""

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from flows.search.query import Find, Query
from storage.postgres.catalog import Selection
from storage.records import Record, Rejected
from storage.sources import checked_metadata, checked_texts, is_storable, rejected
from storage.sources.unicode_marks import MAX_MARKS, has_many_marks
from storage.sources.validation import INT64, MAX_KEY_CHARS, MAX_TEXT_CHARS, BadRow

MOST_HITS = 1000
MOST_CONDITIONS = 32
MOST_KEYS = 100
MAX_NAME_CHARS = 255
MAX_URI_CHARS = 4096


def storable(text: str) -> str:
    """Return `text` if both stores can hold it.

    Raises:
        ValueError: it contains NUL.
    """
    if not is_storable(text):
        raise ValueError("NUL cannot be stored; leave it out")
    return text


def decode_base64(value: Any) -> Any:
    """Decode base64 text; return other values as they are.

    Raises:
        ValueError: it is not base64.
    """
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64 ({error})") from error


def finite(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return `metadata` if all its numbers are valid JSON.

    Written again, others would become null.

    Raises:
        ValueError: one is NaN or infinite.
    """
    waiting: list[Any] = [metadata]
    while waiting:
        match waiting.pop():
            case float() as number if not math.isfinite(number):
                raise ValueError(f"{number} is not JSON; write null or leave it out")
            case dict() as inner:
                waiting += inner.values()
            case list() as inner:
                waiting += inner
    return metadata


def markable(text: str) -> str:
    """Return `text` without excessive stacks of combining marks.

    Raises:
        ValueError: it stacks more than languages do.
    """
    if has_many_marks(text):
        raise ValueError(f"more than {MAX_MARKS} combining marks in a row; leave them out")
    return text


Storable = AfterValidator(storable)
Line = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME_CHARS), Storable]
Marked = AfterValidator(markable)
Key = Annotated[str, StringConstraints(min_length=1, max_length=MAX_KEY_CHARS), Storable]
Words = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT_CHARS), Storable, Marked]
Number = Annotated[int, Field(ge=INT64.start, lt=INT64.stop)]
Real = Annotated[float, Field(allow_inf_nan=False)]
Value = Annotated[str, StringConstraints(max_length=MAX_KEY_CHARS), Storable] | bool | Number | Real
Where = Annotated[
    dict[Line, Value | Annotated[list[Value], Field(min_length=1, max_length=MOST_CONDITIONS)]],
    Field(
        max_length=MOST_CONDITIONS,
        description="Metadata fields, `source` or `key`, each with its value, or a list: any matches.",
        examples=[{"kind": "fruit", "year": 2026}],
    ),
]
ImageBytes = Annotated[
    bytes,
    BeforeValidator(decode_base64),
    PlainSerializer(lambda data: base64.b64encode(data).decode(), when_used="json"),
    WithJsonSchema({"type": "string", "contentEncoding": "base64", "minLength": 1}),
    Field(min_length=1),
]


class RequestModel(BaseModel):
    """Define the base of request models: frozen, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SearchRequest(RequestModel):
    """Search by a text or by an image."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"text": "a red apple", "limit": 5, "where": {"kind": "fruit"}}]}
    )

    text: Words | None = Field(None, description="Query text.")
    image_base64: ImageBytes | None = Field(None, description="Query image, as base64.")
    find: Find | None = Field(
        None,
        description="Whether to search images or texts; by default images for a text, texts for an image.",
    )
    limit: int = Field(10, ge=1, le=MOST_HITS, description="The most hits to return.")
    min_score: float | None = Field(
        None, ge=-1, le=1, allow_inf_nan=False, description="Minimum score of a hit, a cosine."
    )
    where: Where = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.text is None) == (self.image_base64 is None):
            raise ValueError("give a text or an image, one of the two")
        return self

    def as_query(self, oversampling: float) -> Query:
        default: Find = "images" if self.image_base64 is None else "texts"
        return Query(
            self.text,
            image_bytes=self.image_base64,
            find=self.find or default,
            limit=self.limit,
            min_score=self.min_score,
            where=as_typed(self.where),
            oversampling=oversampling,
        )


def as_typed(where: Mapping[str, Any]) -> dict[str, str | tuple[str, ...]]:
    """Return conditions as text, the input of searches and deletes.

    >>> as_typed({"year": [2025, 2026], "sold": False, "kind": "fruit"})
    {'year': ('2025', '2026'), 'sold': 'false', 'kind': 'fruit'}
    """
    return {
        name: tuple(map(_as_text, value)) if isinstance(value, list) else _as_text(value)
        for name, value in where.items()
    }


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class SentText(RequestModel):
    """Represent a text with its language."""

    text: str
    lang: str | None = Field(None, description="Language code, such as `de` or `pt_BR`.")


class SentRecord(RequestModel):
    """Represent a record: texts, an image, or both."""

    key: Annotated[Key, Marked] = Field(
        description="Unique within the source; the same key again replaces the record."
    )
    texts: list[str | SentText] = Field([], description="Captions, titles, descriptions.")
    image: (
        Annotated[str, StringConstraints(pattern="^https?://", max_length=MAX_URI_CHARS), Storable] | None
    ) = Field(None, description="URL of the image, http or https, that the server can read.")
    image_base64: ImageBytes | None = Field(None, description="The bytes of the image, as base64.")
    metadata: Annotated[dict[str, JsonValue], AfterValidator(finite)] = Field(
        {}, description="Further fields; searches can filter on them."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.image is not None and self.image_base64 is not None:
            raise ValueError("give image or image_base64, one of the two")
        return self

    def as_row(self) -> Record | Rejected:
        """Return the record for an ingest, or why it is rejected.

        Its place is derived from its key: sent again, it is recognised.
        """
        place = f"sent: {self.key}"
        data = self.image_base64
        name = self.image if data is None else f"sha256:{hashlib.sha256(data).hexdigest()}"
        try:
            texts = checked_texts(
                (one, None) if isinstance(one, str) else (one.text, one.lang) for one in self.texts
            )
            if not texts and name is None:
                raise BadRow("empty_record", "neither text nor image; give one of them")
            metadata = checked_metadata(self.metadata)
            return Record(self.key, place, texts, name, metadata, data, from_strangers=True)
        except BadRow as bad:
            bad.key = self.key
            return rejected(place, bad, raw=self.model_dump_json(exclude={"image_base64"}))


class IngestRequest(RequestModel):
    """Ingest records, replacing those with the same keys."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "source": "shop",
                    "records": [
                        {
                            "key": "4711",
                            "texts": ["Red running shoe", {"text": "Roter Laufschuh", "lang": "de"}],
                            "image": "https://shop.example/4711.jpg",
                            "metadata": {"price": 59},
                        }
                    ],
                }
            ]
        }
    )

    source: Line = Field(
        description=(
            "Source of the records. Use a name of its own: an ingest of a folder or manifest with "
            "--delete-missing deletes the records that are not in there."
        )
    )
    records: list[SentRecord] = Field(min_length=1, description="At most SIGHTLINE_API__MAX_RECORDS.")
    revive: bool = Field(
        False, description="Whether records that were deleted by request are ingested again."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        seen: set[str] = set()
        for record in self.records:
            if record.key in seen:
                raise ValueError(f"two records have the key {record.key!r}; give each its own")
            seen.add(record.key)
        return self


class DeleteRequest(RequestModel):
    """Delete the records that match every given condition."""

    keys: list[Key] = Field([], max_length=MOST_KEYS)
    source: Line | None = None
    where: Where = {}
    at_most: int | None = Field(None, ge=0)
    """Records that may be deleted at most; None for any number. The server sets it, never the client."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.keys and self.source is None and not self.where:
            raise ValueError("give a key, a source or a condition: without any, it would match every record")
        return self

    @property
    def is_whole_source(self) -> bool:
        return not self.keys and not self.where

    def as_selection(self) -> Selection:
        return Selection(tuple(self.keys), self.source, as_typed(self.where))
