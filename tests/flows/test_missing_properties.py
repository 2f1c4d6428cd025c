"""However a source is damaged, no item is deleted whose row still stands in it, and never many at once.

A row stands where its bytes are what they were, on lines of their own.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pyarrow.parquet import write_table
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from flows.config.settings import Settings
from flows.ingestion.dry_run import simulate
from flows.ingestion.missing_items import ALWAYS_ALLOWED, DEFAULT_MAX_SHARE
from flows.ingestion.request import Request
from flows.ingestion.run_state import RunState
from storage.postgres import catalog
from storage.records import Digest, Item
from storage.sources import BadSource
from tests.flows.test_delete_missing import unlistable

SOURCE = "s"
LENIENT = Settings(batch_size=4, max_reject_share=1.0)
DIGEST = Digest("0" * 64, "0" * 64)

DEFAULT = hypothesis_settings(max_examples=120)
LONG = hypothesis_settings(max_examples=2_500)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Which of the items an ingest would delete; None where it ends with an error before."""

    known: int
    deleted: set[str]
    record: RunState | None


def outcome(engine: Engine, keys: Sequence[str], location: Path, *, yes: bool) -> Outcome:
    """Store items with these keys, and have the source decide on them; nothing is committed."""
    items = [Item(SOURCE, key) for key in keys]
    request = Request(location, SOURCE, delete_missing=True, yes=yes)
    with Session(engine) as session:
        try:
            catalog.save_items(session, {item.id: (item, DIGEST) for item in items})
            record = simulate(session, LENIENT, request)
            ids = catalog.missing_from_run(session, SOURCE, record.run.id, 10**6)
            missing = {item.key for item in items if item.id in set(ids)}
            assert len(missing) == record.decision.deletes + record.decision.leaves
            return Outcome(len(items), missing if record.decision.deletes else set(), record)
        except BadSource:
            return Outcome(len(items), set(), None)
        finally:
            session.rollback()


def check(found: Outcome, standing: set[str], *, yes: bool) -> None:
    assert not found.deleted & standing
    assert yes or len(found.deleted) <= max(ALWAYS_ALLOWED, DEFAULT_MAX_SHARE * found.known)


# Manifests of lines: what is known of them is which bytes are whose


@dataclass(frozen=True, slots=True)
class Lines:
    """A manifest, as its header and the bytes of each row with its newline."""

    name: str
    header: bytes
    keys: tuple[str, ...]
    rows: tuple[bytes, ...]

    @property
    def content(self) -> bytes:
        return self.header + b"".join(self.rows)

    def standing(self, start: int, end: int, damaged: bytes) -> set[str]:
        """The keys of the rows that are still there once the bytes from start to end are others."""
        standing, at, shift = set(), len(self.header), len(damaged) - len(self.content)
        for key, row in zip(self.keys, self.rows, strict=True):
            before, after = at + len(row) <= start, at >= end
            at_line_start = damaged[at + shift - 1 : at + shift] == b"\n"
            if before or (after and at_line_start):
                standing.add(key)
            at += len(row)
        return standing


def csv_cell(text: str, *, quoted: bool) -> str:
    """A cell as other programs than Python write it: a quote that opens nothing stays as it is."""
    if quoted or "," in text or "\n" in text or text.startswith('"'):
        return '"' + text.replace('"', '""') + '"'
    return text


captions = st.text(st.sampled_from('ab5 ,"\n'), min_size=1, max_size=8).map(lambda text: "x" + text)
closing = st.sampled_from(["red"] * 6 + ['size 5"'] * 3 + [",x\n", "two\nlines"])
"""With these a quote too many finds another that closes it, and rows are lost in one that looks sound."""

awkward = st.text(st.sampled_from('a,"\n'), min_size=1, max_size=6) | captions | closing


@st.composite
def csv_files(
    draw: st.DrawFn,
    cells: st.SearchStrategy[str] = awkward,
    *,
    at_least: int = 1,
    may_quote_all: bool = True,
) -> Lines:
    columns = draw(st.permutations(["key", "text", "note"]) | st.permutations(["key", "text"]))
    end, quoted = draw(st.sampled_from(["\n", "\r\n"])), draw(st.booleans()) and may_quote_all
    keys = [f"k{n}" for n in draw(st.permutations(range(draw(st.integers(at_least, 13)))))]
    rows = []
    for key in keys:
        row = {"key": key, "text": draw(cells), "note": draw(cells | st.just(""))}
        rows.append((",".join(csv_cell(row[name], quoted=quoted) for name in columns) + end).encode())
    return Lines("s.csv", (",".join(columns) + end).encode(), tuple(keys), tuple(rows))


@st.composite
def jsonl_files(draw: st.DrawFn) -> Lines:
    keys = [f"k{n}" for n in range(draw(st.integers(1, 12)))]
    rows = [json.dumps({"key": key, "text": draw(awkward)}).encode() + b"\n" for key in keys]
    return Lines("s.jsonl", b"", tuple(keys), tuple(rows))


BYTES = [b'"', b"\n", b",", b"\r", b"\0", b"\xff", b"k", b"{"]


@st.composite
def damages(
    draw: st.DrawFn, manifest: Lines, kinds: Sequence[str] = ("cut", "flip", "quote", "rows")
) -> tuple[int, int, bytes]:
    """Return which bytes are replaced, from where to where, and by what."""
    content = manifest.content
    at = draw(st.integers(0, len(content) - 1))
    match draw(st.sampled_from(kinds)):
        case "cut":
            return at, len(content), b""
        case "flip":
            return at, at + 1, draw(st.sampled_from(BYTES) | st.binary(min_size=1, max_size=1))
        case "quote":
            return at, at, b'"'
        case "quote before a cell":
            after = range(len(manifest.header), len(content))
            at = draw(st.sampled_from([n for n in after if content[n - 1 : n] in (b",", b"\n")]))
            return at, at, b'"'
    ends = [len(manifest.header)]
    for row in manifest.rows:
        ends.append(ends[-1] + len(row))
    start, end = sorted(draw(st.tuples(st.sampled_from(ends), st.sampled_from(ends))))
    return start, end, b""


def check_manifest(engine: Engine, manifest: Lines, damage: tuple[int, int, bytes], *, yes: bool) -> None:
    start, end, new = damage
    damaged = manifest.content[:start] + new + manifest.content[end:]
    with TemporaryDirectory() as folder:
        path = Path(folder, manifest.name)
        path.write_bytes(damaged)

        found = outcome(engine, manifest.keys, path, yes=yes)

    check(found, manifest.standing(start, end, damaged), yes=yes)


damaged_manifests = (csv_files() | jsonl_files()).flatmap(lambda one: st.tuples(st.just(one), damages(one)))
quotes = csv_files(closing, at_least=6, may_quote_all=False).flatmap(
    lambda one: st.tuples(st.just(one), damages(one, kinds=("quote before a cell",)))
)


@DEFAULT
@given(damaged_manifests, st.booleans())
def test_no_row_that_stands_in_a_damaged_manifest_is_deleted(
    migrated: Engine, found: tuple[Lines, tuple[int, int, bytes]], yes: bool
):
    check_manifest(migrated, *found, yes=yes)


@DEFAULT
@given(quotes)
def test_no_row_that_a_quote_too_many_hides_is_deleted(
    migrated: Engine, found: tuple[Lines, tuple[int, int, bytes]]
):
    check_manifest(migrated, *found, yes=True)


@pytest.mark.full
@LONG
@given(damaged_manifests | quotes, st.booleans())
def test_no_row_that_stands_in_one_of_many_damaged_manifests_is_deleted(
    migrated: Engine, found: tuple[Lines, tuple[int, int, bytes]], yes: bool
):
    check_manifest(migrated, *found, yes=yes)


@hypothesis_settings(max_examples=25)
@given(csv_files(captions) | jsonl_files(), st.data())
def test_rows_that_are_gone_from_a_sound_manifest_are_deleted(
    migrated: Engine, manifest: Lines, data: st.DataObject
):
    gone = data.draw(st.sets(st.integers(0, len(manifest.rows) - 1), max_size=len(manifest.rows) - 1))
    left = [row for n, row in enumerate(manifest.rows) if n not in gone]
    with TemporaryDirectory() as folder:
        path = Path(folder, manifest.name)
        path.write_bytes(manifest.header + b"".join(left))

        found = outcome(migrated, manifest.keys, path, yes=True)

    assert found.deleted == {manifest.keys[n] for n in gone}


# Parquet: a page that is damaged is found by its checksum


def a_parquet(path: Path, keys: Sequence[str]) -> Path:
    table = pa.table({"key": list(keys), "text": [f"text of {key}" for key in keys]})
    write_table(table, path, write_page_checksum=True, row_group_size=5)
    return path


@hypothesis_settings(max_examples=2)
@given(st.data())
def test_a_damaged_parquet_file_deletes_nothing_that_it_had(migrated: Engine, data: st.DataObject):
    keys = [f"k{n}" for n in range(data.draw(st.integers(1, 30)))]
    with TemporaryDirectory() as folder:
        path = a_parquet(Path(folder, "s.parquet"), keys)
        content = bytearray(path.read_bytes())
        footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
        at = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content = content[:at]
        else:
            content[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)

        found = outcome(migrated, keys, path, yes=True)
        careful = outcome(migrated, keys, path, yes=False)

    in_footer = footer <= at < len(content)
    assert in_footer or not found.deleted
    check(careful, set() if in_footer else set(keys), yes=False)


@hypothesis_settings(max_examples=2)
@given(st.integers(1, 30), st.integers(1, 30), st.booleans())
def test_rows_that_are_gone_from_parquet_are_deleted_within_the_limit(
    migrated: Engine, known: int, left: int, yes: bool
):
    keys = [f"k{n}" for n in range(known)]
    with TemporaryDirectory() as folder:
        path = a_parquet(Path(folder, "s.parquet"), keys[:left])

        found = outcome(migrated, keys, path, yes=yes)

    check(found, set(keys[:left]), yes=yes)
    assert found.deleted == set(keys[left:]) or not yes


# Folders

KINDS = ["nothing", "lost", "pipe", "folder", "pipe beside it", "broken link"]


def replace_by(kind: str, path: Path) -> None:
    """Do to a file what can happen to it."""
    if kind == "pipe beside it":
        os.mkfifo(path.with_suffix(".txt"))
        return
    if kind != "nothing":
        path.unlink()
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "broken link":
            path.symlink_to("nowhere")


@hypothesis_settings(max_examples=30)
@given(
    st.dictionaries(
        st.sampled_from([f"{at}{n}.png" for at in ("", "x/", "x/y/") for n in range(5)]),
        st.sampled_from(KINDS),
        min_size=1,
    ),
    st.booleans(),
    st.booleans(),
)
def test_no_file_that_stands_in_a_damaged_folder_is_deleted(
    migrated: Engine, kinds: dict[str, str], yes: bool, broken: bool
):
    with TemporaryDirectory() as folder:
        for name, kind in kinds.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"a picture")
            replace_by(kind, path)
        if broken:
            unlistable(Path(folder))

        found = outcome(migrated, list(kinds), Path(folder), yes=yes)

        shutil.rmtree(folder, ignore_errors=True)
        Path(folder).mkdir(exist_ok=True)
    check(found, {name for name, kind in kinds.items() if kind != "lost"}, yes=yes)
    assert not (broken and found.deleted)
