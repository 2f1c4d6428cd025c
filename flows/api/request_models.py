"""What callers send: its shape is checked here, and what a record may hold where all sources do."""

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
        ValueError: they cannot.
    """
    if not is_storable(text):
        raise ValueError("NUL cannot be stored; leave it out")
    return text


def decode_base64(value: Any) -> Any:
    """Return the bytes that base64 stands for.

    Raises:
        ValueError: it is no base64.
    """
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64 ({error})") from error


def finite(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return `metadata` if all its numbers are JSON's: written again, others would become null.

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
    """Return `text` if it stacks no more combining marks than languages do.

    Raises:
        ValueError: it does.
    """
    if has_many_marks(text):
        raise ValueError(f"more than {MAX_MARKS} combining marks in a row; leave them out")
    return text


Storable = AfterValidator(storable)
Line = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME_CHARS), Storable]
Marked = AfterValidator(markable)
Key = Annotated[str, StringConstraints(min_length=1, max_length=MAX_KEY_CHARS), Storable]
NewKey = Annotated[Key, Marked]
Words = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT_CHARS), Storable, Marked]
Number = Annotated[int, Field(ge=INT64.start, lt=INT64.stop)]
Real = Annotated[float, Field(allow_inf_nan=False)]
Value = Annotated[str, StringConstraints(max_length=MAX_KEY_CHARS), Storable] | bool | Number | Real
Where = Annotated[
    dict[Line, Value],
    Field(
        max_length=MOST_CONDITIONS,
        description="Metadata fields, `source` or `key`, each with the value that it must have.",
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
    """Whatever comes from outside: frozen, and without fields that nobody reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SearchRequest(RequestModel):
    """What is looked for: a text or an image, one of the two."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"text": "a red apple", "limit": 5, "where": {"kind": "fruit"}}]}
    )

    text: Words | None = Field(None, description="What to look for, in words.")
    image_base64: ImageBytes | None = Field(None, description="What to look for, as a picture.")
    find: Find | None = Field(
        None, description="What to find; by default images for a text, and texts for a picture."
    )
    limit: int = Field(10, ge=1, le=MOST_HITS, description="The most hits to return.")
    min_score: float | None = Field(
        None, ge=-1, le=1, allow_inf_nan=False, description="Leave out hits that score lower; a cosine."
    )
    where: Where = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.text is None) == (self.image_base64 is None):
            raise ValueError("give a text or a picture, one of the two")
        return self

    def as_query(self, oversampling: float) -> Query:
        default: Find = "images" if self.image_base64 is None else "texts"
        return Query(
            self.text,
            picture=self.image_base64,
            find=self.find or default,
            limit=self.limit,
            min_score=self.min_score,
            where=as_typed(self.where),
            oversampling=oversampling,
        )


def as_typed(where: Mapping[str, Any]) -> dict[str, str]:
    """Return conditions as a person would type them, which is what searches and deletes take.

    >>> as_typed({"year": 2026, "sold": False, "kind": "fruit"})
    {'year': '2026', 'sold': 'false', 'kind': 'fruit'}
    """
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in where.items()}


class SentText(RequestModel):
    """A text with its language."""

    text: str
    lang: str | None = Field(None, description="Such as `de` or `pt_BR`.")


class SentRecord(RequestModel):
    """A record: texts, an image, or both."""

    key: Annotated[Key, Marked] = Field(
        description="Unique within the source; the same key again replaces the record."
    )
    texts: list[str | SentText] = Field([], description="Captions, titles, descriptions.")
    image: (
        Annotated[str, StringConstraints(pattern="^https?://", max_length=MAX_URI_CHARS), Storable] | None
    ) = Field(None, description="Where the picture is: an http or https URL that the server can read.")
    image_base64: ImageBytes | None = Field(None, description="The picture itself.")
    metadata: Annotated[dict[str, JsonValue], AfterValidator(finite)] = Field(
        {}, description="Whatever else; searches can filter on it."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.image is not None and self.image_base64 is not None:
            raise ValueError("give image or image_base64, one of the two")
        return self

    def as_row(self) -> Record | Rejected:
        """Return the record as an ingest takes it, or why it cannot be taken in.

        Its place is made of its key: sent again, it is known again.
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
    """Records to be taken in, new ones or in place of those with the same keys."""

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
            "What the records belong to. Give it a name of its own: an ingest of a folder or manifest with "
            "--delete-missing deletes what is not in there."
        )
    )
    records: list[SentRecord] = Field(min_length=1, description="At most SIGHTLINE_API__MAX_RECORDS.")
    revive: bool = Field(
        False, description="Whether records that were deleted by request are taken in again."
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
    """Which records are to go: those for which all holds that is given, of which there is something."""

    keys: list[Key] = Field([], max_length=MOST_KEYS)
    source: Line | None = None
    where: Where = {}
    at_most: int | None = Field(None, ge=0)
    """The most records that may go; None for any number. Not the client's to say."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.keys and self.source is None and not self.where:
            raise ValueError("give a key, a source or a condition: without any, it would be everything")
        return self

    @property
    def is_whole_source(self) -> bool:
        return not self.keys and not self.where

    def as_selection(self) -> Selection:
        return Selection(tuple(self.keys), self.source, as_typed(self.where))
