"""What is missing from a source, and what merely could not be read: only the one is ever deleted."""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, text

from flows.cli import main
from flows.config.settings import Settings, load_settings
from flows.ingestion.dry_run import dry_run
from flows.ingestion.missing_items import DeleteLimit, MissingItems, SourceCoverage, decide
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.report import IngestReport, as_markdown
from flows.ingestion.request import PartOfSource, Request, RowSelection
from flows.ingestion.retry_rejects import RetryReport, retry_rejects
from flows.ingestion.run_state import TooManyMissing, TooManyRejects
from flows.orchestration.jobs.ingest import ingest_again
from flows.resources.connections import Deps, open_deps
from storage.postgres import rejects, runs
from storage.records import Rejected
from storage.sources import BadSource, find_row, read_source
from storage.sources.read_options import ReadOptions
from tests.support import forks
from tests.support.builders import a_folder, a_manifest, a_record, png


def ingest(deps: Deps, settings: Settings, location: Path, **asked: Any) -> IngestReport:
    return ingest_source(deps, settings, Request(location, **asked))


def lenient(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_reject_share": 1.0, "batch_size": 100})


def living(deps: Deps) -> set[str]:
    with deps.sessions() as session:
        return set(session.scalars(text("select key from items where deleted is null")))


def open_places(deps: Deps) -> set[str]:
    with deps.sessions() as session:
        return {reject.place for reject in rejects.open_rejects(session)}


def last_run(deps: Deps) -> runs.Run:
    with deps.sessions() as session:
        return runs.recent_runs(session, limit=1)[0]


def a_csv(path: Path, rows: Sequence[Sequence[str]], columns: Sequence[str] = ("key", "text")) -> Path:
    content = io.StringIO(newline="")
    csv.writer(content, lineterminator="\n").writerows([columns, *rows])
    path.write_text(content.getvalue())
    return path


def colours(many: int) -> list[list[str]]:
    return [[f"k{n}", "red"] for n in range(1, many + 1)]


def spoil(path: Path, before: str, after: str) -> Path:
    """Write a file again with one thing changed."""
    content = path.read_text()
    assert content.count(before) == 1, content.count(before)
    path.write_text(content.replace(before, after))
    return path


# A source that is not understood


UNCLEAR = [
    pytest.param("s.csv", "k9,red", 'k9,"red', "bad_row", id="an open quote"),
    pytest.param("s.csv", "k9,red", "k9", "bad_row", id="a cell too few"),
    pytest.param("s.csv", "k9,red", "k9,red,blue", "bad_row", id="a cell too many"),
    pytest.param("s.csv", "k9,red", ",red", "no_key", id="a row without a key"),
    pytest.param("s.csv", "k9,red", "k9,r\0ed", "bad_text", id="zeros where rows may have been"),
    pytest.param("s.jsonl", '{"key": "k9", "text": "red"}', '{"key": "k9", "te', "not_json", id="a cut line"),
    pytest.param("s.jsonl", '{"key": "k9"', '{"kez": "k9"', "no_key", id="a line without a key"),
    pytest.param("s.jsonl", '{"key": "k9"', '{"key": "k9\\u0000"', "bad_key", id="a key that was another"),
]


@pytest.mark.parametrize(("name", "before", "after", "reason"), UNCLEAR)
def test_a_source_with_a_row_that_is_not_understood_deletes_nothing_and_says_so(
    deps: Deps, settings: Settings, tmp_path: Path, name: str, before: str, after: str, reason: str
):
    rows = colours(20)
    source = tmp_path / name
    write = partial(a_csv, source) if name.endswith("csv") else partial(as_jsonl, source)
    ingest(deps, settings, write(rows))
    write([*rows[:18], ["new", "blue"]])
    spoil(source, before, after)

    report = ingest(deps, lenient(settings), source, delete_missing=True, yes=True, max_delete=1)

    place = "line 10" if name.endswith("csv") else "line 9"
    assert (report.outcome, report.deleted) == ("completed", 0)
    assert report.not_deleted >= 2
    assert living(deps) >= {key for key, _ in rows}
    assert report.not_deleted_because is not None
    assert f"{place} ({reason})" in report.not_deleted_because
    assert report.not_deleted_because in as_markdown(report)
    run = last_run(deps)
    assert run.counts["not_deleted"] == report.not_deleted
    assert run.counts["not_deleted_because"] == report.not_deleted_because


def as_jsonl(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    return a_manifest(path, [{"key": key, "text": caption} for key, caption in rows])


def test_what_is_good_in_a_source_that_is_not_understood_is_ingested(
    deps: Deps, settings: Settings, tmp_path: Path
):
    source = as_jsonl(tmp_path / "s.jsonl", colours(8))
    ingest(deps, settings, source)
    as_jsonl(source, [*colours(8), ["new", "blue"]])
    spoil(source, '{"key": "k3"', '{"key: "k3"')

    report = ingest(deps, settings, source, delete_missing=True)

    assert (report.embedded, report.rejected, report.not_deleted) == (1, 1, 1)
    assert living(deps) == {*(f"k{n}" for n in range(1, 9)), "new"}


def test_only_the_first_few_rows_that_are_not_understood_are_named():
    reading = SourceCoverage()

    for n in range(5):
        reading.add(Rejected(f"line {n}", None, "not_json", "", rows=n + 1))

    assert reading.doubt == (
        "15 rows could not be understood: line 0 (not_json), line 1 (not_json), line 2 (not_json), …"
    )


def test_a_reject_whose_key_is_certain_protects_its_item_and_no_other(
    deps: Deps, settings: Settings, tmp_path: Path
):
    source = as_jsonl(tmp_path / "s.jsonl", colours(8))
    ingest(deps, settings, source)
    as_jsonl(source, colours(7))
    spoil(source, '"k3", "text": "red"', '"k3", "text": 5')

    report = ingest(deps, settings, source, delete_missing=True)

    assert (report.rejected, report.deleted, report.not_deleted) == (1, 1, 0)
    assert living(deps) == {f"k{n}" for n in range(1, 8)}


def test_a_file_name_that_is_not_utf8_is_certain_and_holds_up_no_delete(
    deps: Deps, settings: Settings, tmp_path: Path
):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red"), "b.png": png("blue"), "c.png": png("green")})
    ingest(deps, settings, folder)
    (folder / "c.png").unlink()
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(png("red"))

    report = ingest(deps, settings, folder, delete_missing=True)

    assert (report.reasons, report.deleted) == ({"bad_key": 1}, 1)


# CSV: rows that an open quote swallows


def test_a_row_that_swallows_others_counts_as_all_of_them_and_says_from_where_to_where(tmp_path: Path):
    source = spoil(a_csv(tmp_path / "s.csv", colours(30)), "k9,red", 'k9,"red')

    *_, reject = read_source(source)

    assert isinstance(reject, Rejected)
    assert (reject.place, reject.rows, reject.is_understood) == ("line 10", 22, False)
    assert "from line 10 on, read up to line 31" in reject.message


def test_rows_that_were_swallowed_trip_the_limit_of_rejects(deps: Deps, settings: Settings, tmp_path: Path):
    source = a_csv(tmp_path / "s.csv", colours(30))
    ingest(deps, settings, source)
    spoil(source, "k9,red", 'k9,"red')

    with pytest.raises(TooManyRejects, match="22 of 30 records were rejected, 22 of them as bad_row"):
        ingest(deps, settings, source, delete_missing=True, yes=True)

    assert len(living(deps)) == 30


@pytest.mark.parametrize("columns", [("key", "text"), ("text", "key"), ("note", "key", "text")])
def test_rows_inside_a_cell_that_a_later_quote_closes_are_not_missing(
    deps: Deps, settings: Settings, tmp_path: Path, columns: tuple[str, ...]
):
    cells = [{"key": f"k{n}", "text": "red", "note": "x"} for n in range(9)]
    cells[6]["text"] = 'size 5"'  # a quote that opens nothing is a character as any other
    lines = [",".join(columns), *(",".join(row[name] for name in columns) for row in cells)]
    source = tmp_path / "s.csv"
    source.write_text("\n".join(lines) + "\n")
    assert ingest(deps, settings, source).embedded == 9
    lines[3] = lines[3].replace("red", '"red')
    source.write_text("\n".join(lines) + "\n")

    report = ingest(deps, settings, source, delete_missing=True, yes=True)

    assert (report.read, report.rejected) == (5, 0)
    assert living(deps) >= {f"k{n}" for n in range(9) if n not in (2, 6)}


def test_a_row_that_begins_inside_a_cell_and_ends_after_it_is_not_missing(
    deps: Deps, settings: Settings, tmp_path: Path
):
    whole = 'text,key\nred,k1\n",x\n",k2\nblue,k3\nsize 5",k4\n'
    source = tmp_path / "s.csv"
    source.write_text(whole)
    ingest(deps, settings, source)
    source.write_text(whole.replace("red,k1", '"ed,k1'))

    report = ingest(deps, settings, source, delete_missing=True)

    assert report.rejected == 0
    assert living(deps) >= {"k2", "k3", "k4"}


def test_rows_that_a_quote_in_the_header_swallows_are_not_missing(
    deps: Deps, settings: Settings, tmp_path: Path
):
    source = a_csv(tmp_path / "s.csv", [[f"k{n}", "red", "x"] for n in range(6)], ("key", "text", "note"))
    ingest(deps, settings, source)
    spoil(source, "key,text,note", 'key,text,"note')
    spoil(source, "k3,red,x", 'k3,red,x"')

    report = ingest(deps, settings, source, delete_missing=True)

    assert report.read == 2
    assert living(deps) >= {"k0", "k1", "k2"}


def test_a_caption_that_is_too_long_for_swallowed_rows_counts_as_them(tmp_path: Path):
    rows = [[f"k{n}", "red " * 50] for n in range(300)]
    source = a_csv(tmp_path / "s.csv", rows)
    lines = source.read_text().splitlines()
    lines[5], lines[250] = lines[5].replace("red", '"red', 1), lines[250] + '"'
    source.write_text("\n".join(lines) + "\n")

    [reject] = [row for row in read_source(source) if isinstance(row, Rejected)]

    assert (reject.key, reject.reason, reject.rows) == ("k4", "text_too_long", 246)


def test_captions_of_several_lines_hold_up_no_delete(deps: Deps, settings: Settings, tmp_path: Path):
    rows = [[f"k{n}", f'first, line\nthe "second", {n}\n\nlast'] for n in range(9)]
    source = a_csv(tmp_path / "s.csv", rows)
    ingest(deps, settings, source)
    a_csv(source, rows[:6])

    report = ingest(deps, settings, source, delete_missing=True)

    assert (report.read, report.unchanged, report.deleted, report.not_deleted) == (6, 6, 3, 0)
    assert living(deps) == {f"k{n}" for n in range(6)}


@pytest.mark.full  # without processes it is tried anyway
def test_a_csv_of_3000_rows_with_a_stray_quote_loses_nothing_by_the_command_line(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path
):
    monkeypatch.setenv("SIGHTLINE_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("SIGHTLINE_HOME", str(home))
    source = a_csv(tmp_path / "shop.csv", colours(3_000))
    settings = load_settings()
    with open_deps(settings) as deps:
        assert ingest(deps, settings, source).embedded == 3_000

    spoil(source, "k100,red", 'k100,"red')
    most = forks.sightline("ingest", source, "--delete-missing", "--yes", "--json")
    a_csv(source, colours(2_000))
    cut = forks.sightline("ingest", source, "--delete-missing")
    planned = sightline("ingest", source, "--delete-missing", "--dry-run")
    agreed = sightline("ingest", source, "--delete-missing", "--max-delete", "40%", "--dry-run", "--json")
    spoil(source, "k1990,red", 'k1990,"red')
    few = sightline("ingest", source, "--delete-missing", "--yes", "--dry-run")

    assert (most.returncode, json.loads(most.stdout)["deleted"]) == (1, 0)
    assert "2,901 of 3,000 records were rejected" in most.stderr
    assert cut.returncode == 1
    lost = "1,000 of 3,000 items of source 'shop' are missing from it, more than 5%: k2001, k2002, k2003, …"
    assert lost in cut.stderr
    assert lost in planned
    assert json.loads(agreed)["deleted"] == 1_000
    assert "1,011 items not met: 11 rows could not be understood: line 1991 (bad_row)" in few


def sightline(*arguments: object) -> str:
    """What a command that needs no flow prints, on one line."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return " ".join(result.stdout.split())


# How much may be deleted


@pytest.mark.parametrize(
    ("missing", "known", "limit", "deletes"),
    [
        (5, 5, DeleteLimit(), 5),
        (6, 6, DeleteLimit(), 0),
        (6, 119, DeleteLimit(), 0),
        (6, 120, DeleteLimit(), 6),
        (5, 100, DeleteLimit(0), 5),
        (60, 100, DeleteLimit(0.6), 60),
        (61, 100, DeleteLimit(0.6), 0),
        (100, 100, DeleteLimit(yes=True), 100),
    ],
)
def test_a_handful_or_a_small_share_may_be_deleted(
    missing: int, known: int, limit: DeleteLimit, deletes: int
):
    verdict = decide(MissingItems("shop", missing, known, ("a",)), SourceCoverage(), limit)

    assert (verdict.deletes, verdict.leaves, verdict.exceeds_limit) == (
        deletes,
        missing - deletes,
        not deletes,
    )


def test_no_limit_overrides_a_doubt():
    reading = SourceCoverage()
    reading.add(Rejected("line 1", None, "not_json", ""))

    verdict = decide(MissingItems("shop", 1, 100, ("a",)), reading, DeleteLimit(1, yes=True))

    assert (verdict.deletes, verdict.exceeds_limit) == (0, False)


def test_more_than_the_limit_deletes_nothing_and_fails_with_all_else_kept(
    deps: Deps, settings: Settings, tmp_path: Path
):
    source = as_jsonl(tmp_path / "shop.jsonl", colours(10))
    ingest(deps, settings, source)
    as_jsonl(source, [["k1", "red"], ["new", "blue"]])

    says = r"9 of 10 items of source 'shop' are missing from it, more than 5%: k10, k2, k3, …; .*--max-delete"
    with pytest.raises(TooManyMissing, match=says) as failed:
        ingest(deps, settings, source, delete_missing=True)

    assert (failed.value.report.outcome, failed.value.report.not_deleted) == ("failed", 9)
    assert living(deps) == {*(f"k{n}" for n in range(1, 11)), "new"}
    run = last_run(deps)
    assert (run.outcome, run.counts["not_deleted"], run.counts["deleted"]) == ("failed", 9, 0)
    assert "TooManyMissing: 9 of 10" in (run.error or "")
    assert ingest(deps, settings, source, delete_missing=True, yes=True).deleted == 9
    assert living(deps) == {"k1", "new"}


def test_what_a_failed_run_ingested_does_not_make_the_missing_a_smaller_share(
    deps: Deps, settings: Settings, tmp_path: Path
):
    source = as_jsonl(tmp_path / "shop.jsonl", colours(10))
    ingest(deps, settings, source)
    as_jsonl(source, [[f"other{n}", "red"] for n in range(400)])

    for _ in range(2):
        with pytest.raises(TooManyMissing, match="10 of 10 items"):
            ingest(deps, lenient(settings), source, delete_missing=True)

    assert {f"k{n}" for n in range(1, 11)} < living(deps)


def test_a_dry_run_shows_the_same_limit_and_the_same_doubts_and_writes_nothing(
    deps: Deps, settings: Settings, tmp_path: Path
):
    source = as_jsonl(tmp_path / "shop.jsonl", colours(10))
    ingest(deps, settings, source)
    dry = partial(dry_run, deps.engine, settings)
    as_jsonl(source, colours(2))

    many = dry(Request(source, delete_missing=True))
    agreed = dry(Request(source, delete_missing=True, yes=True))
    spoil(source, '{"key": "k2"', "{")
    unclear = dry(Request(source, delete_missing=True, yes=True))
    source.write_text("")
    empty = dry(Request(source, delete_missing=True, yes=True))

    assert (many.deleted, many.not_deleted) == (0, 8)
    assert "8 of 10 items" in (many.not_deleted_because or "")
    assert (agreed.deleted, agreed.not_deleted, agreed.not_deleted_because) == (8, 0, None)
    assert (unclear.deleted, unclear.not_deleted) == (0, 9)
    assert "line 2 (not_json)" in (unclear.not_deleted_because or "")
    assert (empty.deleted, empty.not_deleted) == (0, 10)
    assert "is it the right folder" in (empty.not_deleted_because or "")
    assert len(living(deps)) == 10


@pytest.mark.parametrize(
    "part",
    [
        {"limit": 3},
        {"only": RowSelection(frozenset(["line 1"]), frozenset())},
        {"location": None, "name": "shop", "sent": (a_record(),)},
    ],
)
def test_a_run_that_reads_a_part_of_its_source_is_not_asked_to_delete_the_rest(part: dict[str, Any]):
    with pytest.raises(PartOfSource, match="delete_missing needs the whole source"):
        Request(**{"location": Path("shop"), "delete_missing": True} | part)


def test_a_schedule_fails_for_a_source_that_lost_much_and_goes_on_with_the_others(
    deps: Deps, settings: Settings, tmp_path: Path
):
    lost = as_jsonl(tmp_path / "lost.jsonl", colours(10))
    fine = as_jsonl(tmp_path / "fine.jsonl", colours(10))
    deep = a_folder(tmp_path / "deep", {"a.png": png("red")})
    both = as_jsonl(tmp_path / "both.jsonl", colours(2))
    for source in (lost, fine, deep, both):
        ingest(deps, settings, source, delete_missing=True, yes=True, max_delete=1)
    with deps.sessions.begin() as session:
        session.execute(text("""update runs set options = options || '{"limit": 1}' where source = 'both'"""))
    as_jsonl(lost, colours(1))
    as_jsonl(fine, colours(9))
    unlistable(deep)
    with deps.sessions() as session:
        known = runs.known_sources(session)

    failed: dict[str, str] = {}
    counts = sum(
        (ingest_again(deps, settings, one, None, failed) for one in known),
        start=Counter(),
    )

    assert failed.keys() == {"both", "deep", "lost"}
    assert "9 of 10 items of source 'lost' are missing" in failed["lost"]
    assert "cannot be listed" in failed["deep"]
    assert "needs the whole source" in failed["both"]
    assert counts["deleted"] == 1


# A source that breaks while it is read


def unlistable(folder: Path) -> Path:
    """Make a folder in which there is one that nobody can list: its path is too long, for root as well."""
    name, at = "z" * 250, os.open(folder, os.O_RDONLY)
    for _ in range(17):
        os.mkdir(name, dir_fd=at)
        inner = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
    return folder


def test_a_folder_that_cannot_be_listed_ends_the_run_and_nothing_is_deleted(
    deps: Deps, settings: Settings, tmp_path: Path
):
    files: dict[str, bytes | str] = {f"{n}.png": png("red", (16, 16 + n)) for n in range(6)}
    folder = a_folder(tmp_path / "shop", files | {"x/a.png": png("blue")})
    ingest(deps, settings, folder)
    (folder / "0.png").unlink()
    unlistable(folder)

    with pytest.raises(BadSource, match=r"shop/zzz.*cannot be listed \(File name too long\); check"):
        ingest(deps, settings, folder, delete_missing=True, yes=True)

    assert len(living(deps)) == 7
    assert last_run(deps).outcome == "failed"


@pytest.mark.parametrize("name", ["s.jsonl", "s.csv"])
def test_a_manifest_whose_disk_fails_is_a_bad_source(tmp_path: Path, name: str):
    (tmp_path / name).symlink_to("/proc/self/mem")  # opens, and fails to be read

    with pytest.raises(BadSource, match=r"cannot be read to its end \(Input/output error\); check the disk"):
        list(read_source(tmp_path / name))


def test_a_folder_in_place_of_a_picture_is_not_a_missing_picture(
    deps: Deps, settings: Settings, tmp_path: Path
):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red"), "b.png": png("blue"), "c.png": png("green")})
    ingest(deps, settings, folder)
    (folder / "a.png").unlink()
    (folder / "a.png").mkdir()
    (folder / "b.png").unlink()

    report = ingest(deps, settings, folder, delete_missing=True)

    assert (report.reasons, report.deleted) == ({"unreadable": 1}, 1)
    assert living(deps) == {"a.png", "c.png"}


# Rejects


def test_a_reject_that_may_stand_in_what_was_swallowed_stays_open(
    deps: Deps, settings: Settings, tmp_path: Path
):
    rows = colours(20)
    rows[3][1] = rows[11][1] = rows[14][1] = "nul\0"
    source = tmp_path / "s.jsonl"
    as_jsonl(source, rows)
    ingest(deps, settings, source)
    assert open_places(deps) == {"line 4", "line 12", "line 15"}
    rows[3][1], rows[14:] = "red", []
    as_jsonl(source, rows)
    spoil(source, '{"key": "k9"', '{"key: "k9"')

    ingest(deps, settings, source)

    assert open_places(deps) == {"line 9", "line 12", "line 15"}


def test_a_retry_resolves_nothing_that_it_did_not_find_in_a_source_that_is_not_understood(
    deps: Deps, settings: Settings, tmp_path: Path
):
    rows = [[f"k{n}", "red", "http://127.0.0.1:1/a.png" if n in (3, 15) else ""] for n in range(20)]
    source = a_csv(tmp_path / "s.csv", rows, ("key", "text", "image"))
    ingest(deps, settings, source)
    rows[3][2] = ""
    a_csv(source, rows, ("key", "text", "image"))
    spoil(source, "k10,red,", 'k10,"red,')

    [done] = retry_rejects(deps, settings)

    assert (done.tried, done.open) == (2, 1)
    assert "1 row not found, and a part of the source could not be understood: line 17" in done.problem
    assert open_places(deps) == {"line 17"}
    with pytest.raises(BadSource, match=r"line 17 is not found, and may be in .* read up to line 21"):
        find_row(source, "line 17", "k15")


def test_a_retry_of_an_empty_source_resolves_nothing(deps: Deps, settings: Settings, tmp_path: Path):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red"), "b.png": b"broken"})
    ingest(deps, settings, folder)
    for name in ("a.png", "b.png"):
        (folder / name).unlink()

    [done] = retry_rejects(deps, settings)

    assert done == RetryReport("shop", 1, 1, done.problem)
    assert "no record in it" in (done.problem or "")
    assert open_places(deps) == {"b.png"}


def test_a_row_that_is_still_bad_is_no_problem_of_a_retry(deps: Deps, settings: Settings, tmp_path: Path):
    source = as_jsonl(tmp_path / "s.jsonl", colours(9))
    spoil(source, '{"key": "k9"', '{"key: "k9"')
    ingest(deps, settings, source)

    assert retry_rejects(deps, settings) == [RetryReport("s", tried=1, open=1)]


def test_items_of_files_that_are_excluded_now_stay_until_a_yes(
    deps: Deps, settings: Settings, tmp_path: Path
):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red"), "small/a.png": png("blue")})
    reading = ReadOptions(exclude=("small/",))
    ingest(deps, settings, folder)

    kept = ingest(deps, settings, folder, delete_missing=True, reading=reading)
    agreed = ingest(deps, settings, folder, delete_missing=True, reading=reading, yes=True)

    assert (kept.deleted, kept.not_deleted, kept.ignored) == (0, 1, 1)
    assert kept.not_deleted_because == "1 item of files that are excluded now stay; --yes deletes them"
    assert kept.left_out["kinds"] == {"excluded": {".png": 1}}
    assert kept.left_out["first"] == [{"place": "small/a.png", "reason": "excluded"}]
    assert (agreed.deleted, agreed.not_deleted) == (1, 0)
    with deps.sessions() as session:
        assert runs.last_left_out(session)["shop"]["kinds"] == {"excluded": {".png": 1}}
        assert runs.last_read(session, "shop")[1]["exclude"] == ["small/"]  # type: ignore[index]
