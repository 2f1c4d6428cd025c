"""Define the immutable records that modules exchange."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

ID_NAMESPACE = UUID("c1f6d7a4-3b0e-4e52-9d5c-2a7f81e06b93")
SHORT_TEXT_CHARS = 300


def item_id(source: str, key: str) -> UUID:
    """Return the id of an item from its source and key.

    It is the same on every machine.

    The pair is encoded as JSON before hashing, so ("a", "b_c") and ("a_b", "c") differ.
    """
    return uuid5(ID_NAMESPACE, json.dumps([source, key]))


@dataclass(frozen=True, slots=True)
class Text:
    """Store one text of an item: a caption, title or description."""

    text: str
    lang: str | None = None
    """A language tag such as `de` or `pt_BR`; None when the source gives none."""

    embedded: bool = True
    """Whether the text has a vector; the others are stored, not searched."""


@dataclass(frozen=True, slots=True)
class Record:
    """Represent a valid row of a source, before its image is fetched."""

    key: str
    place: str
    """Readable position in the source: a relative path, or `line 17`."""

    texts: tuple[Text, ...]
    image: str | None
    """An absolute path or a URL that `fetch` takes."""

    metadata: Mapping[str, Any] = field(default_factory=dict)
    data: bytes | None = field(default=None, repr=False)
    """The bytes of the image if they came with the record; `image` is then their name."""

    hides: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """Keys of rows that may be hidden in a cell of this one, because of an extra quote."""

    folder: Path | None = field(default=None, repr=False, compare=False)
    """Folder of the source, resolved: no path in `image` leads out of it. None unless `image` is a path."""

    from_strangers: bool = False
    """Whether it came over the API: its URL may then lead to public hosts only, at every read."""

    dropped: tuple[tuple[str, str], ...] = field(default=(), repr=False, compare=False)
    """Metadata fields that no store can keep, each with the reason; the record is kept without them."""

    def select_languages(self, langs: Sequence[str]) -> "Record":
        """Mark texts without a language, or in one of `langs`, as embedded.

        The language `all` selects every text.
        """
        texts = (
            replace(text, embedded=text.lang is None or "all" in langs or text.lang in langs)
            for text in self.texts
        )
        return replace(self, texts=tuple(texts))


@dataclass(frozen=True, slots=True)
class Rejected:
    """Represent a rejected row: its place, the reason, and the remedy."""

    place: str
    key: str | None
    reason: str
    """A code that scripts can count by, such as `not_a_picture`."""

    message: str
    """A sentence that names the record and the remedy."""

    raw: str = ""
    """The row of the source, cut to a bounded length."""

    rows: int = 1
    """Number of source rows in it: an open quote includes those that follow."""

    in_doubt: bool = False
    """Whether it may contain rows with other keys."""

    hides: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """Keys of rows that may be hidden in it, as in `Record`."""

    @property
    def is_understood(self) -> bool:
        """Whether the row certainly belongs to `key`, and to no other item."""
        return self.key is not None and not self.in_doubt


@dataclass(frozen=True, slots=True)
class Ignored:
    """Represent an ignored file or field of a source.

    It is counted and named.
    """

    place: str
    reason: str = "not_an_image"
    """A code of `storage.sources.ignored_reasons`."""

    detail: str = ""
    """Cause and remedy where they differ from file to file."""

    key: str | None = field(default=None, compare=False)
    """Key of the item that the file would be; an earlier run may have ingested it."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Store the origin of an image."""

    uri: str
    from_strangers: bool = False
    """Whether the URI came over the API, as in `Record`."""

    folder: Path | None = None
    """As in `Record`; None where it is unknown."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Describe an image without its pixels."""

    sha256: str
    uri: str
    width: int
    height: int
    format: str
    from_strangers: bool = False
    """Whether its URI came over the API, as in `Record`."""

    @property
    def origin(self) -> Origin:
        return Origin(self.uri, self.from_strangers)


@dataclass(frozen=True, slots=True)
class Item:
    """Represent a searchable entity: a text, an image, or both."""

    source: str
    key: str
    texts: tuple[Text, ...] = ()
    image: ImageInfo | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> UUID:
        return item_id(self.source, self.key)

    @property
    def embedded_texts(self) -> tuple[str, ...]:
        """Texts with a vector, in the order of the multivector rows."""
        return tuple(text.text for text in self.texts if text.embedded)

    @property
    def short_text(self) -> str:
        """The text that represents the item in lists.

        It is the first embedded text, else the first text, cut to `SHORT_TEXT_CHARS`.
        """
        texts = self.embedded_texts or tuple(text.text for text in self.texts) or ("",)
        return texts[0][:SHORT_TEXT_CHARS]


@dataclass(frozen=True, slots=True)
class Digest:
    """Identify the inputs of a stored point by two hashes.

    Only a change of the first one needs the model.
    """

    content: str
    """SHA-256 over all that the vectors depend on: the image's bytes and the embedded texts."""

    record: str
    """SHA-256 over the rest: every text, the metadata, where the image is."""


def digest_of(record: Record, image_sha256: str | None) -> Digest:
    """Return the digest of a record and the bytes of its image.

    Texts without a vector count for `record` alone, so a changed translation needs no model.
    """
    embedded = [text.text for text in record.texts if text.embedded]
    texts = [[text.text, text.lang, text.embedded] for text in record.texts]
    return Digest(
        content=_sha256([image_sha256, embedded]),
        record=_sha256([record.key, texts, record.image, dict(record.metadata)]),
    )


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse_conditions(entries: Iterable[str]) -> dict[str, str | tuple[str, ...]]:
    """Parse `field=value` conditions; several values of one field mean any of them.

    >>> parse_conditions(["kind=fruit", "year=1", "year=2"])
    {'kind': 'fruit', 'year': ('1', '2')}

    Raises:
        ValueError: one is malformed; its argument is that condition.
    """
    found: dict[str, list[str]] = {}
    for entry in entries:
        field, equals, value = entry.partition("=")
        if not equals or not field.strip():
            raise ValueError(entry)
        found.setdefault(field.strip(), []).append(value)
    unique = {field: tuple(dict.fromkeys(values)) for field, values in found.items()}
    return {field: values[0] if len(values) == 1 else values for field, values in unique.items()}


def any_reading(values: str | Sequence[str]) -> list[str | int | float | bool]:
    """Return the metadata values that one or several values match."""
    return [one for value in ([values] if isinstance(values, str) else values) for one in readings(value)]


def readings(value: str) -> list[str | int | float | bool]:
    """Return the metadata values that a typed string may stand for.

    These are the string, a boolean, or a number.

    >>> readings("7")
    ['7', 7]
    """
    if value in ("true", "false"):
        return [value, value == "true"]
    if re.fullmatch(r"-?\d{1,18}", value):
        return [value, int(value)]
    if re.fullmatch(r"-?\d+(\.\d+)?([eE][+-]?\d+)?", value):
        number = float(value)
        return [value, number] if math.isfinite(number) else [value]
    return [value]


Where = Mapping[str, str | Sequence[str]]
"""Conditions by field: its value, or several of which any matches; all fields must match."""


@dataclass(frozen=True, slots=True)
class Hit:
    """Represent one search result."""

    id: UUID
    score: float
    best_text: int | None
    """Which of the item's embedded texts is closest to the query; None when it has none."""

    point: Item
    """The item as stored in its point: no image, and only the short text."""

    digest: Digest | None
    """The digest of the point: while an item is being replaced, Postgres already has another one."""
