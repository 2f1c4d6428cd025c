"""Read, cut and create a shard's write-ahead log on disk.

The engine writes files named `closed-FIRST`, with the number of their first record, and `open-ID`, which
goes on after the last closed one. Each begins with `wal`, a version and a seed; then come the records: the
length in eight bytes, the CBOR of one operation, zeros up to a multiple of eight, and in the last four bytes
a checksum, which begins with the one before. A length of zero ends a file; the rest of it is free.
`first-index` holds the number up to which the shard's segments have everything.

The engine treats the first record with a wrong checksum as the end, and overwrites all that follows.
"""

import json
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import google_crc32c

HEADER = b"wal\0"
SEED = struct.Struct("<I")
START = len(HEADER) + SEED.size
LENGTH = struct.Struct("<Q")
CHECKSUM_BYTES = 4
ALIGNED = 8
MAPS = (0xBF, 0xA1)
"""How a record's CBOR begins: a map of open length, or of one entry, by the name of the operation."""

TEXT, TEXT_LENGTH, LONG_TEXT = 0x60, 0x1F, 24
FIRST_INDEX = "first-index"
SEGMENT = "segment.json"
GAP = 1_000_000


@dataclass(frozen=True, slots=True)
class Record:
    """Locate one operation in the log."""

    number: int
    file: Path
    start: int
    end: int
    kind: str


def records(log: Path) -> list[Record]:
    """Return the records of a log, in order.

    Those that come in a file after a damaged length are not found.
    """
    found: list[Record] = []
    for file in files(log):
        first = _first_number(file)
        found += _records_of(file, first if first is not None else _following(found, log))
    return found


@dataclass(frozen=True, slots=True)
class LogCheck:
    """Summarise the checksums of a log."""

    intact: int
    """Number of intact records from the first on."""

    unfinished: Record | None
    """The last record, which a killed process had started to write."""

    is_damaged: bool
    """Whether more than one unfinished record follows the intact ones."""


def check_log(log: Path) -> LogCheck:
    """Compare all records with their checksums, and find trailing bytes."""
    found = records(log)
    intact, unfinished = 0, None
    is_damaged = False
    for file in files(log):
        content = file.read_bytes()
        own = [record for record in found if record.file == file]
        stored = [SEED.unpack_from(content, record.end - CHECKSUM_BYTES)[0] for record in own]
        before = [SEED.unpack_from(content, len(HEADER))[0], *stored[:-1]] if own else []
        parts = [content[record.start : record.end - CHECKSUM_BYTES] for record in own]
        right = list(map(checksum, parts, before))
        good = next(
            (at for at, (one, two) in enumerate(zip(stored, right, strict=True)) if one != two), len(own)
        )
        intact += good if not is_damaged and unfinished is None else 0
        if good == len(own) - 1 and stored[good] == 0 and own[good] == found[-1]:
            unfinished = own[good]
        elif good < len(own):
            is_damaged = True
        is_damaged |= len(content.rstrip(b"\0")) > (own[-1].end if own else START)
    return LogCheck(intact, unfinished, is_damaged)


def checksum(record: bytes, before: int) -> int:
    """Compute the CRC-32C of a record, chained to the previous checksum.

    It begins with the checksum of the record before, its bits in reverse order.
    """
    mirrored = int(f"{before:032b}"[::-1], 2)
    return int(google_crc32c.extend(mirrored ^ 0xFFFFFFFF, record))


def erase(record: Record) -> None:
    """Overwrite an unfinished record with zeros."""
    with record.file.open("r+b") as file:
        file.seek(record.start)
        file.write(bytes(record.end - record.start))


def files(log: Path) -> list[Path]:
    """Return the files that hold records, in order."""
    closed = sorted(log.glob("closed-*"), key=_suffix)
    return closed + sorted(log.glob("open-*"), key=_suffix)


def write_prefix(log: Path, target: Path, count: int) -> None:
    """Write a log of the first `count` records to `target`.

    The number of the next record stays the same.
    """
    target.mkdir()
    found = records(log)
    last_file = found[count].file if count < len(found) else None
    ends = {record.file: record.end for record in found[:count]}
    for file in files(log):
        if file in ends or _first_number(file) is not None:
            with (target / file.name).open("wb") as copy:
                copy.write(file.read_bytes()[: ends.get(file, START)])
                copy.truncate(file.stat().st_size)
        if file == last_file:
            break
    with suppress(FileNotFoundError):
        (target / FIRST_INDEX).write_bytes((log / FIRST_INDEX).read_bytes())


def remainder(log: Path, count: int) -> bytes:
    """Return the bytes after the first `count` records, without padding.

    They begin with a record, or with bytes that are none.
    """
    last = records(log)[:count][-1:]
    start = last[0].end if last else START
    following = files(log)
    if last:
        following = following[following.index(last[0].file) :]
    contents = [file.read_bytes().rstrip(b"\0") for file in following]
    used = [content for content in contents[1:] if len(content) > START]
    return b"".join([content[start:] for content in contents[:1]] + used)


def create_empty(log: Path, segments: Path) -> None:
    """Create an empty log, numbered above all records that the shard has.

    The engine skips an operation with a number below that of the points that it changes.
    """
    log.mkdir()
    versions = [json.loads(path.read_bytes()).get("version") or 0 for path in segments.glob(f"*/{SEGMENT}")]
    (log / f"closed-{max(versions, default=0) + GAP}").write_bytes(HEADER + SEED.pack(0))


def _records_of(file: Path, first: int) -> Iterator[Record]:
    content = file.read_bytes()
    if content[: len(HEADER)] != HEADER:
        return
    start, number = START, first
    while start + LENGTH.size <= len(content):
        [length] = LENGTH.unpack_from(content, start)
        end = start + LENGTH.size + length + CHECKSUM_BYTES
        end += -end % ALIGNED
        if length == 0 or end > len(content):
            return
        yield Record(number, file, start, end, _kind(content[start + LENGTH.size : end]))
        start, number = end, number + 1


def _kind(record: bytes) -> str:
    """Return the operation name in a record's CBOR, such as `upsert_points`."""
    if len(record) < 3 or record[0] not in MAPS or record[1] & ~TEXT_LENGTH != TEXT:
        return "of an unknown kind"
    length = record[1] & TEXT_LENGTH
    start = 2 if length < LONG_TEXT else 3
    name = record[start : start + (length if length < LONG_TEXT else record[2])].decode("ascii", "replace")
    return name if name.isidentifier() else "of an unknown kind"


def _following(found: list[Record], log: Path) -> int:
    if found:
        return found[-1].number + 1
    return max((number for file in files(log) if (number := _first_number(file)) is not None), default=0)


def _first_number(file: Path) -> int | None:
    return _suffix(file) if file.name.startswith("closed-") else None


def _suffix(file: Path) -> int:
    return int(file.name.rpartition("-")[2])
