"""Detect the encoding and the separator of a CSV file."""

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from charset_normalizer import from_bytes

from storage.sources.columns import CONTENT_COLUMNS, columns_of

SAMPLE_BYTES = 256 * 1024
SEPARATORS = (",", ";", "\t", "|")
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
LEGACY = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257"),
    *("shift_jis", "gb18030", "big5", "euc_kr", "euc_jp"),
)
"""Encodings that spreadsheets write, the most common first."""

CERTAIN_BYTES = 64
"""Fewer bytes that are not ASCII tell one encoding from another too rarely: then it is `LEGACY[0]`."""

codecs.register_error("sightline-marked", lambda error: ("\udc80", getattr(error, "end", 1)))


@dataclass(frozen=True, slots=True)
class Dialect:
    """Hold the encoding and the separator of one CSV file."""

    encoding: str = "utf-8"
    separator: str = ","
    was_detected: bool = False
    """Whether the encoding was concluded from its bytes."""

    names_separator: bool = False
    """Whether the first line is `sep=;`, which Excel writes and reads."""


def dialect_of(path: Path, mapped: Sequence[tuple[str, str]] = ()) -> Dialect:
    """Detect the dialect of a file."""
    with path.open("rb") as file:
        sample = file.read(SAMPLE_BYTES)
    mark = next((encoding for bom, encoding in MARKS if sample.startswith(bom)), None)
    encoding = mark or _encoding_of(sample)
    text = sample.decode(encoding, "replace").removeprefix("\ufeff")
    first = text.partition("\n")[0].rstrip("\r")
    if first.lower().startswith("sep=") and len(first) == len("sep=,"):
        return Dialect(encoding, first[-1], mark is None and encoding != "utf-8", names_separator=True)
    return Dialect(encoding, _separator(first, mapped), mark is None and encoding != "utf-8")


def _encoding_of(sample: bytes) -> str:
    """Return the likely encoding of bytes without a mark.

    UTF-8 stays UTF-8 where some of its bytes are damaged: they cost their rows alone.
    """
    if sample.count(b"\0") * 3 > len(sample):
        return "utf-16-le" if sample[1:2] == b"\0" else "utf-16-be"
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(sample)
    damaged = sum("\udc80" <= letter <= "\udcff" for letter in text)
    if not damaged or damaged <= sum(letter > "\x7f" for letter in text) - damaged or b"\0" in sample:
        return "utf-8"
    if damaged < CERTAIN_BYTES:
        return LEGACY[0]
    best = from_bytes(sample, cp_isolation=list(LEGACY)).best()
    return LEGACY[0] if best is None else best.encoding


def _separator(header: str, mapped: Sequence[tuple[str, str]]) -> str:
    """Return the separator that finds most content columns, then most columns."""

    def score(separator: str) -> tuple[int, int]:
        names = [name.strip() for name in next(csv.reader([header], delimiter=separator), [])]
        contents = columns_of(names, mapped).named(names)
        return sum(name in contents for name in CONTENT_COLUMNS), len(names)

    try:
        return max(SEPARATORS, key=score)
    except csv.Error:
        return ","


@contextmanager
def open_as_utf8(path: Path, encoding: str) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Open a file, and yield it with its lines in UTF-8.

    Bytes that are invalid in its encoding are invalid in UTF-8 too.
    """
    with path.open("rb") as file:
        if encoding == "utf-8":
            yield file, file
            return
        with io.TextIOWrapper(file, encoding, errors="sightline-marked", newline="\n") as text:
            yield file, cast("BinaryIO", _Utf8Lines(text))


class _Utf8Lines:
    """Read the lines of a text as bytes."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text

    def readline(self, limit: int) -> bytes:
        return self._text.readline(limit).encode("utf-8", "surrogateescape")
