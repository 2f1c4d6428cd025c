"""Validate keys, texts and metadata for every store."""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from storage.errors import InvalidInput
from storage.records import Rejected, Text
from storage.redaction import redacted
from storage.sources.unicode_marks import REMEDY, TooManyMarks, composed, has_many_marks

MAX_RAW_CHARS = 2_000
MAX_KEY_CHARS = 1_024
MAX_TEXTS = 1_000
MAX_TEXT_CHARS = 32_768
MAX_LANG_CHARS = 64
MAX_METADATA_BYTES = 64 * 1024
MAX_METADATA_DEPTH = 32
INT64 = range(-(2**63), 2**63)

UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
"""Characters that Postgres rejects: NUL, and unpaired surrogates."""


class BadRow(InvalidInput):
    """Signal a row that cannot become a record.

    The next one may be fine.

    Attributes:
        reason: a code to count by.
        key: the row's key, once it is known.
        in_doubt: whether the row may contain others, or its key may be wrong.
    """

    def __init__(self, reason: str, message: str, *, key: str | None = None, in_doubt: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.key = key
        self.in_doubt = in_doubt


def rejected(place: str, bad: BadRow, raw: str) -> Rejected:
    """Return the reject of a row; all its parts can be stored."""
    return Rejected(
        place=printable(place),
        key=None if bad.key is None else printable(bad.key, MAX_KEY_CHARS),
        reason=bad.reason,
        message=printable(f"{place}: {bad}"),
        raw=printable(raw),
        in_doubt=bad.in_doubt,
    )


def is_storable(text: str) -> bool:
    """Return whether Postgres can store `text`."""
    return UNSTORABLE.search(text) is None


def printable(text: str, max_chars: int = MAX_RAW_CHARS) -> str:
    r"""Return `text` cut to `max_chars`, without secrets in URLs.

    Characters that cannot be stored are shown by their codes.

    >>> printable("http://me:secret@host/a.png")
    'http://***@host/a.png'
    >>> printable("a" + chr(0) + chr(0xDCFF) + "b")
    'a\\x00\\udcffb'
    """
    head = redacted(text[: max_chars + MAX_KEY_CHARS])[: max_chars + 1].replace("\x00", "\\x00")
    head = head.encode("utf-8", "backslashreplace").decode()
    return head if len(head) <= max_chars else head[: max_chars - 1] + "…"


def checked_key(value: object) -> str:
    """Validate a key; strings stay as written.

    Raises:
        BadRow: `no_key` or `bad_key`.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        found = "none" if value is None else f"a {type(value).__name__}"
        raise BadRow("no_key", f"the key must be a string or an integer, found {found}; give the row a key")
    if not value.strip():
        raise BadRow("no_key", "the key is empty; give the row a key")
    if not is_storable(value):
        why = f"key {value[:100]!r} holds NUL or half a character; rename it at the source"
        raise BadRow("bad_key", why, key=value, in_doubt=True)
    if len(value) > MAX_KEY_CHARS:
        why = f"key of {len(value):,} characters; shorten it to {MAX_KEY_CHARS:,} or fewer"
        raise BadRow("bad_key", why, key=value, in_doubt=True)
    if has_many_marks(value):
        raise BadRow("bad_key", f"the key has {REMEDY}", key=value, in_doubt=True)
    return value


def checked_texts(found: Iterable[tuple[object, object]]) -> tuple[Text, ...]:
    """Validate the texts of a record: NFC, stripped, non-empty and distinct.

    Args:
        found: pairs of text and language, in order; None for an absent one.

    Raises:
        BadRow: `bad_text`, `text_too_long` or `too_many_texts`; the texts are numbered from 1.
    """
    kept: dict[Text, None] = {}
    for n, (text, lang) in enumerate(found, start=1):
        checked = _checked_text(text, lang, n)
        if checked.text:
            kept[checked] = None
        if len(kept) > MAX_TEXTS:
            why = f"over {MAX_TEXTS:,} texts; keep so many or fewer, or make several records of it"
            raise BadRow("too_many_texts", why)
    return tuple(kept)


def _checked_text(text: object, lang: object, n: int) -> Text:
    if not isinstance(text, str | None) or not isinstance(lang, str | None):
        problem = (
            f"is {_kind(text)}" if not isinstance(text, str | None) else f"has {_kind(lang)} as its lang"
        )
        raise BadRow("bad_text", f"text {n} {problem}, not a string; write it in quotes or leave it out")
    text, lang = (text or "").strip(), (lang or "").strip()
    _check_length(text, n)  # before it is normalised as well, which takes its time
    if len(lang) > MAX_LANG_CHARS:
        raise BadRow("bad_text", f"text {n} has a lang of {len(lang):,} characters; write one such as pt_BR")
    if not is_storable(text + lang):
        raise BadRow("bad_text", f"text {n} holds NUL or half a character; remove it at the source")
    if has_many_marks(lang):
        raise BadRow("bad_text", f"text {n} has a lang of {REMEDY}")
    try:
        text = composed(text)
    except TooManyMarks as error:
        raise BadRow("bad_text", f"text {n} has {error}") from error
    _check_length(text, n)
    return Text(text, lang or None)


def _check_length(text: str, n: int) -> None:
    if len(text) > MAX_TEXT_CHARS:
        why = f"text {n} has {len(text):,} characters; shorten it to {MAX_TEXT_CHARS:,} or fewer"
        raise BadRow("text_too_long", why)


def checked_metadata(found: Mapping[str, Any]) -> dict[str, Any]:
    """Validate metadata as JSON that Postgres can store.

    Nulls at the top are left out; dates and decimals become strings.

    Raises:
        BadRow: `bad_metadata`.
    """
    plain = {_name(name): _plain(name, value) for name, value in found.items() if value is not None}
    size = len(json.dumps(plain, ensure_ascii=False).encode())
    if size > MAX_METADATA_BYTES:
        raise BadRow("bad_metadata", f"{size:,} bytes of metadata; leave at most {MAX_METADATA_BYTES:,}")
    return plain


def fitting_metadata(found: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
    """Return the metadata that can be stored, and the other fields.

    A field costs itself alone; where all of them are too large, the largest are left out.

    Returns:
        The metadata, and the name and the reason of each field left out.
    """
    kept: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    dropped: list[tuple[str, str]] = []
    for name, value in found.items():
        try:
            checked = checked_metadata({name: value})
        except BadRow as bad:
            dropped.append((printable(name, 100), str(bad)))
            continue
        kept |= checked
        sizes |= {one: len(json.dumps(checked, ensure_ascii=False).encode()) for one in checked}
    excess = sum(sizes.values()) - MAX_METADATA_BYTES
    for name in sorted(sizes, key=lambda one: -sizes[one]):
        if excess <= 0:
            break
        excess -= sizes[name]
        del kept[name]
        why = f"metadata {name[:100]!r} has {sizes[name]:,} bytes; shorten it"
        dropped.append((printable(name, 100), why))
    return kept, tuple(dropped)


def _plain(name: str, value: object, depth: int = 1) -> Any:
    if depth > MAX_METADATA_DEPTH:
        raise _bad_metadata(name, f"is nested more than {MAX_METADATA_DEPTH} deep; flatten it")
    match value:
        case None | bool():
            return value
        case str() if not is_storable(value):
            raise _bad_metadata(name, "holds NUL or half a character; remove it at the source")
        case int() if value not in INT64:
            raise _bad_metadata(name, "holds an integer of more than 64 bits; write it as a string")
        case float() if not math.isfinite(value):
            raise _bad_metadata(name, f"holds {value}, which is not JSON; write null or leave it out")
        case str() | int() | float():
            return value
        case Mapping():
            return {_name(inner): _plain(name, item, depth + 1) for inner, item in value.items()}
        case list() | tuple():
            return [_plain(name, item, depth + 1) for item in value]
        case datetime() | date() | time():
            return value.isoformat()
        case Decimal() | UUID() | timedelta():
            return str(value)
    raise _bad_metadata(name, f"holds {_kind(value)}, which is not JSON; leave it out or write a string")


def _name(name: str) -> str:
    if not is_storable(name):
        raise _bad_metadata(name, "has NUL or half a character in its name; rename it at the source")
    return name


def _bad_metadata(name: str, why: str) -> BadRow:
    return BadRow("bad_metadata", f"metadata {name[:100]!r} {why}")


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


def inside(path: str, folder: Path) -> str:
    """Resolve `path` inside `folder`, following symlinks; it need not exist.

    Args:
        path: absolute, or relative to `folder`; storable.
        folder: resolved.

    Raises:
        BadRow: `outside_source`: it leads out of `folder`.
    """
    real = os.path.realpath(folder / path)
    if not Path(real).is_relative_to(folder):
        raise BadRow("outside_source", f"{path!r} leads out of {folder}; copy the file into that folder")
    return real
