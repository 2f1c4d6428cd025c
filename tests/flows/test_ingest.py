import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from qdrant_client import QdrantClient
from sqlalchemy import text

from embedding.images.worker_pool import Workers
from embedding.pipeline import Clock
from flows.config.settings import BadSettings, Limits, Qdrant, Settings
from flows.ingestion import pipeline, request
from flows.ingestion.dry_run import dry_run, failure_of
from flows.ingestion.image_cache import ImageCache
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.report import IngestReport
from flows.ingestion.request import EmptySource, OtherLocation, Request
from flows.ingestion.run_state import TooManyRejects
from flows.ingestion.source_batches import BatchSize, IngestRun, read_batches
from flows.ingestion.stages import Job, encode_batch, start_decoding, store_records, write_points
from flows.resources.collections import open_collection
from flows.resources.connections import Deps
from storage import qdrant
from storage.postgres import catalog, runs
from storage.postgres.locks import Busy, source_lock
from storage.postgres.rejects import open_rejects
from storage.records import Text, item_id
from storage.sources import read_source
from tests.support.builders import a_folder, a_manifest, a_record, png
from tests.support.fakes import ColourEncoder


def ingest(deps: Deps, settings: Settings, location: Path, **asked: object) -> IngestReport:
    return ingest_source(deps, settings, Request(location, **asked))


def keys_found(deps: Deps, query: str, using: qdrant.Space = "image") -> list[str]:
    [vector] = deps.encoder.texts([query])
    hits = qdrant.search_points(
        deps.vectors, qdrant.active_collection(deps.vectors), vector, using=using, limit=100
    )
    with deps.sessions() as session:
        items = catalog.items_with_digests(session, [hit.id for hit in hits])
    return [items[hit.id][0].key for hit in hits]


def rejects(deps: Deps) -> dict[str, str]:
    with deps.sessions() as session:
        return {reject.place: reject.reason for reject in open_rejects(session)}


def rows_of(deps: Deps, table: str) -> int:
    with deps.sessions() as session:
        return session.scalar(text(f"select count(*) from {table}")) or 0


def points(deps: Deps) -> int:
    return deps.vectors.count(qdrant.ALIAS).count


def test_a_picture_is_found_by_a_text_that_describes_it(deps: Deps, settings: Settings, tmp_path: Path):
    folder = a_folder(tmp_path / "shop", {"rose.png": png("red"), "leaf.png": png("green")})

    report = ingest(deps, settings, folder)

    assert keys_found(deps, "something red") == ["rose.png", "leaf.png"]
    assert (report.outcome, report.read, report.embedded) == ("completed", 2, 2)


def test_a_text_is_found_by_a_text(deps: Deps, settings: Settings, tmp_path: Path):
    manifest = a_manifest(
        tmp_path / "notes.jsonl", [{"key": "a", "text": "red"}, {"key": "b", "texts": ["blue", "green"]}]
    )

    ingest(deps, settings, manifest)

    assert keys_found(deps, "green", "text") == ["b", "a"]


def test_a_second_run_embeds_nothing_and_leaves_one_of_everything(
    deps: Deps, settings: Settings, tmp_path: Path
):
    files = {f"{n}.png": png("red", (16, 16 + n)) for n in range(9)}
    folder = a_folder(tmp_path / "shop", files)
    ingest(deps, settings, folder)
    again = replace(deps, encoder=ColourEncoder())

    report = ingest(again, settings, folder)

    assert (report.read, report.unchanged, report.embedded) == (9, 9, 0)
    assert (again.encoder.seen_images, again.encoder.seen_texts) == (0, [])
    assert points(deps) == rows_of(deps, "items") == rows_of(deps, "marks") == 9


def test_changing_one_caption_embeds_that_one(deps: Deps, settings: Settings, tmp_path: Path):
    folder = a_folder(
        tmp_path / "shop",
        {"a.png": png("red"), "a.txt": "red", "b.png": png("blue"), "b.txt": "blue"},
    )
    ingest(deps, settings, folder)
    a_folder(folder, {"a.txt": "green"})
    again = replace(deps, encoder=ColourEncoder())

    report = ingest(again, settings, folder)

    assert (report.unchanged, report.embedded) == (1, 1)
    assert again.encoder.seen_texts == ["green"]
    assert keys_found(deps, "green", "text") == ["a.png", "b.png"]


def test_two_items_that_swap_their_texts_are_both_embedded_again(
    deps: Deps, settings: Settings, tmp_path: Path
):
    manifest = tmp_path / "notes.jsonl"
    ingest(deps, settings, a_manifest(manifest, [{"key": "a", "text": "red"}, {"key": "b", "text": "blue"}]))

    report = ingest(
        deps, settings, a_manifest(manifest, [{"key": "a", "text": "blue"}, {"key": "b", "text": "red"}])
    )

    assert report.embedded == 2
    assert keys_found(deps, "red", "text") == ["b", "a"]


def test_changed_metadata_is_searchable_and_costs_no_model(deps: Deps, settings: Settings, tmp_path: Path):
    manifest = tmp_path / "shop.jsonl"
    ingest(deps, settings, a_manifest(manifest, [{"key": "a", "text": "red", "price": 3}]))
    again = replace(deps, encoder=ColourEncoder())

    report = ingest(again, settings, a_manifest(manifest, [{"key": "a", "text": "red", "price": 2}]))

    [vector] = deps.encoder.texts(["red"])
    assert (report.updated, report.embedded, again.encoder.seen_texts) == (1, 0, [])
    assert qdrant.search_points(
        deps.vectors,
        qdrant.active_collection(deps.vectors),
        vector,
        using="text",
        limit=1,
        where={"price": "2"},
    )
    assert not qdrant.search_points(
        deps.vectors,
        qdrant.active_collection(deps.vectors),
        vector,
        using="text",
        limit=1,
        where={"price": "3"},
    )


def test_a_picture_that_moved_keeps_its_vector_and_what_is_known_of_it(
    deps: Deps, settings: Settings, tmp_path: Path
):
    a_folder(tmp_path, {"old.png": png("red"), "new.png": png("red")})
    manifest = tmp_path / "shop.jsonl"
    ingest(deps, settings, a_manifest(manifest, [{"key": "a", "image": "old.png"}]))

    report = ingest(deps, settings, a_manifest(manifest, [{"key": "a", "image": "new.png"}]))

    with deps.sessions() as session:
        [(item, _)] = catalog.items_with_digests(session, [item_id("shop", "a")]).values()
    assert report.updated == 1
    assert item.image is not None
    assert (item.image.uri, item.image.width, item.image.format) == (
        str(tmp_path / "new.png"),
        16,
        "PNG",
    )


def test_texts_in_other_languages_are_kept_but_not_embedded(deps: Deps, settings: Settings, tmp_path: Path):
    folder = a_folder(tmp_path / "shop", {"a.png": png(), "a.txt": "red\nde.utf8=rot\nen.utf8=crimson\n"})

    ingest(deps, settings, folder)

    with deps.sessions() as session:
        [(item, _)] = catalog.items_with_digests(session, [item_id("shop", "a.png")]).values()
    assert set(item.texts) == {Text("red"), Text("rot", "de", embedded=False), Text("crimson", "en")}
    assert deps.encoder.seen_texts == list(item.embedded_texts)


def test_asking_for_another_language_embeds_the_items_that_have_it(
    deps: Deps, settings: Settings, tmp_path: Path
):
    folder = a_folder(
        tmp_path / "shop", {"a.png": png(), "a.txt": "de.utf8=rot", "b.png": png("blue"), "b.txt": "blue"}
    )
    ingest(deps, settings, folder)

    report = ingest(deps, settings, folder, langs=("de",))

    assert (report.embedded, report.unchanged) == (1, 1)
    assert "rot" in deps.encoder.seen_texts


def test_texts_that_the_model_cuts_are_counted(deps: Deps, settings: Settings, tmp_path: Path):
    manifest = a_manifest(
        tmp_path / "notes.jsonl", [{"key": "a", "text": "red " * 50}, {"key": "b", "text": "red"}]
    )

    assert ingest(deps, settings, manifest).truncated == 1


def test_what_the_source_no_longer_has_is_deleted_only_when_asked(
    deps: Deps, settings: Settings, tmp_path: Path
):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red"), "b.png": png("blue")})
    ingest(deps, settings, folder)
    (folder / "b.png").unlink()

    kept = ingest(deps, settings, folder)
    assert (kept.deleted, points(deps)) == (0, 2)

    gone = ingest(deps, settings, folder, delete_missing=True)
    assert (gone.deleted, points(deps), rows_of(deps, "marks")) == (1, 1, 1)
    assert keys_found(deps, "blue") == ["a.png"]


def test_a_delete_removes_the_picture_unless_another_item_shares_it(
    deps: Deps, settings: Settings, tmp_path: Path
):
    files = {"alone.png": png("red"), "twin1.png": png("blue"), "twin2.png": png("blue")}
    folder = a_folder(tmp_path / "shop", files)
    ingest(deps, settings, folder)
    (folder / "alone.png").unlink()
    (folder / "twin1.png").unlink()

    ingest(deps, settings, folder, delete_missing=True)

    left = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in left] == [png("blue")]


def test_a_record_that_is_now_bad_is_not_missing(deps: Deps, settings: Settings, tmp_path: Path):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red"), "b.png": png("blue"), "c.png": png("green")})
    ingest(deps, settings, folder)
    a_folder(folder, {"b.png": b"broken now"})

    report = ingest(deps, settings, folder, delete_missing=True)

    assert (report.rejected, report.deleted) == (1, 0)
    assert "b.png" in keys_found(deps, "blue")


def test_a_row_that_is_now_bad_is_not_missing_either(deps: Deps, settings: Settings, tmp_path: Path):
    manifest = tmp_path / "notes.jsonl"
    good = [{"key": "a", "text": "red"}, {"key": "b", "text": "blue"}, {"key": "c", "text": "green"}]
    ingest(deps, settings, a_manifest(manifest, good))
    bad = [{"key": "a", "text": "nul\0"}, {"key": "b", "text": "blue"}, {"key": "c", "image": "gone.png"}]

    report = ingest(
        deps,
        settings.model_copy(update={"max_reject_share": 1.0}),
        a_manifest(manifest, bad),
        delete_missing=True,
    )

    assert (report.rejected, report.deleted, points(deps)) == (2, 0, 3)


def test_a_bad_row_does_not_stand_in_the_way_of_a_good_one_with_its_key(
    deps: Deps, settings: Settings, tmp_path: Path
):
    rows = [{"key": "a", "text": "nul\0"}, {"key": "b", "text": "red"}, {"key": "a", "text": "blue"}]

    report = ingest(deps, settings, a_manifest(tmp_path / "notes.jsonl", rows))

    assert report.reasons == {"bad_text": 1}
    assert keys_found(deps, "blue", "text") == ["a", "b"]


def test_neither_does_a_bad_picture(deps: Deps, settings: Settings, tmp_path: Path):
    a_folder(tmp_path, {"bad.png": b"no picture", "good.png": png("blue")})
    rows = [{"key": "a", "image": "bad.png"}, *({"key": f"{n}", "text": "grey"} for n in range(4))]
    manifest = a_manifest(tmp_path / "shop.jsonl", [*rows, {"key": "a", "image": "good.png"}])

    report = ingest(deps, settings, manifest)

    assert report.reasons == {"not_a_picture": 1}
    assert keys_found(deps, "blue") == ["a"]


def test_an_item_that_comes_back_lives_again(deps: Deps, settings: Settings, tmp_path: Path):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red"), "b.png": png("blue")})
    ingest(deps, settings, folder)
    (folder / "b.png").unlink()
    ingest(deps, settings, folder, delete_missing=True)

    a_folder(folder, {"b.png": png("blue")})
    report = ingest(deps, settings, folder)

    assert report.embedded == 1
    assert keys_found(deps, "blue") == ["b.png", "a.png"]


def test_an_empty_source_is_an_error_and_deletes_nothing(deps: Deps, settings: Settings, tmp_path: Path):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red")})
    ingest(deps, settings, folder)
    (folder / "a.png").unlink()
    (folder / "train.parquet").write_bytes(b"PAR1")

    with pytest.raises(
        EmptySource, match=r"is it the right folder .*1 \.parquet .*ingest each as a manifest"
    ):
        ingest(deps, settings, folder, delete_missing=True)

    assert points(deps) == 1


def test_a_key_that_comes_twice_is_taken_once_and_the_other_place_is_on_record(
    deps: Deps, settings: Settings, tmp_path: Path
):
    rows = [{"key": "a", "text": "red"}, {"key": "b", "text": "blue"}, {"key": "a", "text": "green"}]
    far_apart = [*rows, *({"key": f"{n}", "text": "grey"} for n in range(9)), {"key": "b", "text": "green"}]

    report = ingest(deps, settings, a_manifest(tmp_path / "notes.jsonl", far_apart))

    assert (report.read, report.embedded, report.reasons) == (13, 11, {"duplicate_key": 2})
    assert rejects(deps) == {"line 3": "duplicate_key", "line 13": "duplicate_key"}
    assert "green" not in deps.encoder.seen_texts


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_the_first_good_record_of_a_key_counts_wherever_the_bad_one_is(
    deps: Deps, settings: Settings, tmp_path: Path, batch_size: int
):
    settings = replace_batch_size(settings, batch_size).model_copy(update={"max_reject_share": 1})
    folder = a_folder(tmp_path, {"good.png": png("red"), "bad.png": b"no picture"})
    rows = [
        {"key": "a", "image": str(folder / "bad.png")},
        {"key": "a", "image": str(folder / "good.png")},
        {"key": "a", "text": "one too many"},
    ]

    report = ingest(deps, settings, a_manifest(tmp_path / "shop.jsonl", rows))

    assert (report.embedded, report.rejected) == (1, 2)
    assert rejects(deps) == {"line 1": "not_a_picture", "line 3": "duplicate_key"}


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_picture_that_many_records_share_is_shown_to_the_model_once(
    deps: Deps, settings: Settings, tmp_path: Path, batch_size: int
):
    settings = replace_batch_size(settings, batch_size)
    files = {f"{n}.png": png("red" if n % 2 else "blue") for n in range(12)}

    report = ingest(deps, settings, a_folder(tmp_path / "shop", files))

    assert (report.embedded, report.pictures, report.reused) == (12, 12, 10)
    assert deps.encoder.seen_images == 2
    assert set(keys_found(deps, "blue")[:6]) == {f"{n}.png" for n in range(0, 12, 2)}


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_bad_picture_that_many_records_share_is_bad_for_each(
    deps: Deps, settings: Settings, tmp_path: Path, batch_size: int
):
    settings = replace_batch_size(settings, batch_size).model_copy(update={"max_reject_share": 1})
    files: dict[str, bytes | str] = {f"{n}.png": b"no picture" for n in range(5)}

    report = ingest(deps, settings, a_folder(tmp_path / "shop", files))

    assert (report.embedded, report.reasons) == (0, {"not_a_picture": 5})


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_however_many_workers_decode_the_outcome_is_the_same(
    deps: Deps, settings: Settings, tmp_path: Path, workers: int
):
    files: dict[str, bytes | str] = {f"{n}.png": png("red", (16, 16 + n)) for n in range(20)}
    folder = a_folder(tmp_path / "shop", files | {"bad.png": b"no picture"})

    report = ingest(deps, settings.model_copy(update={"decode_workers": workers}), folder)

    assert (report.embedded, report.reasons) == (20, {"not_a_picture": 1})
    assert rejects(deps) == {"bad.png": "not_a_picture"}


def test_a_folder_that_is_mostly_bad_fails_at_the_end_and_keeps_what_was_good(
    deps: Deps, settings: Settings, tmp_path: Path
):
    bad = {f"bad{n:04}.png": b"no picture" for n in range(1000)}
    good = {f"good{n}.png": png("red", (16, 16 + n)) for n in range(3)}
    folder = a_folder(tmp_path / "scrape", bad | good)

    with pytest.raises(TooManyRejects, match="1,000 of 1,003 records were rejected") as failed:
        ingest(deps, replace_batch_size(settings, 100), folder, delete_missing=True)

    assert (failed.value.report.outcome, failed.value.report.embedded) == ("failed", 3)
    assert sorted(keys_found(deps, "red")) == ["good0.png", "good1.png", "good2.png"]
    assert len(rejects(deps)) == 1000
    with deps.sessions() as session:
        [run] = runs.recent_runs(session, limit=5)
    assert (run.outcome, run.counts["rejected"]) == ("failed", 1000)
    assert "TooManyRejects" in (run.error or "")


def replace_batch_size(settings: Settings, size: int) -> Settings:
    return settings.model_copy(update={"batch_size": size})


def test_a_record_that_fails_again_keeps_one_row_and_is_resolved_once_it_passes(
    deps: Deps, settings: Settings, tmp_path: Path
):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red"), "b.png": png("blue"), "c.png": b"broken"})
    ingest(deps, settings, folder)
    ingest(deps, settings, folder)
    assert rejects(deps) == {"c.png": "not_a_picture"}

    a_folder(folder, {"c.png": png("green")})
    ingest(deps, settings, folder)

    assert rejects(deps) == {}
    assert rows_of(deps, "rejects") == 1


def test_a_resolved_record_that_fails_once_more_is_open_again(deps: Deps, settings: Settings, tmp_path: Path):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red"), "b.png": png("blue"), "c.png": b"broken"})
    ingest(deps, settings, folder)
    a_folder(folder, {"c.png": png("green")})
    ingest(deps, settings, folder)

    a_folder(folder, {"c.png": b""})
    ingest(deps, settings, folder)

    assert rejects(deps) == {"c.png": "empty_file"}


def test_a_limited_run_resolves_nothing_that_it_did_not_read(deps: Deps, settings: Settings, tmp_path: Path):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red"), "b.png": png("blue"), "c.png": b"broken"})
    ingest(deps, settings, folder)

    report = ingest(deps, settings, folder, limit=1)

    assert report.read == 1
    assert rejects(deps) == {"c.png": "not_a_picture"}


def test_a_limit_counts_records_and_other_files_are_counted_apart(
    deps: Deps, settings: Settings, tmp_path: Path
):
    sounds = {f"{n}.ogg": b"sound" for n in range(20)}
    pictures = {f"x{n}.png": png("red", (16, 16 + n)) for n in range(5)}
    folder = a_folder(tmp_path / "shop", sounds | pictures)

    report = ingest(deps, settings, folder, limit=3)

    assert (report.read, report.embedded, report.ignored) == (3, 3, 20)


def test_files_that_follow_a_full_last_batch_are_counted_too(deps: Deps, settings: Settings, tmp_path: Path):
    pictures = {f"{n}.png": png("red", (16, 16 + n)) for n in range(settings.batch_size)}
    folder = a_folder(tmp_path / "shop", pictures | {"z.ogg": b"sound"})

    assert ingest(deps, settings, folder).ignored == 1


def test_a_dry_run_says_what_would_happen_and_writes_nothing(deps: Deps, settings: Settings, tmp_path: Path):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red"), "b.png": png("blue"), "c.png": png("green")})
    ingest(deps, settings, folder)
    (folder / "c.png").unlink()
    a_folder(folder, {"b.png": png("grey"), "d.png": png("blue", (20, 20))})
    before = [rows_of(deps, table) for table in ("items", "marks", "runs", "rejects", "seen")]

    report = dry_run(deps.engine, settings, Request(folder, delete_missing=True))

    assert report.outcome == "dry run"
    assert (report.unchanged, report.embedded, report.deleted) == (1, 2, 1)
    assert [rows_of(deps, table) for table in ("items", "marks", "runs", "rejects", "seen")] == before


def test_a_dry_run_and_the_run_agree(deps: Deps, settings: Settings, tmp_path: Path):
    lenient = settings.model_copy(update={"max_reject_share": 1.0})
    folder = a_folder(tmp_path / "shop", {"a.png": png("red"), "b.png": png("red"), "bad.png": b"none"})
    rows = [
        *({"key": "a", "text": "red"}, {"key": "a", "text": "blue"}, {"text": ""}),
        *({"key": "b", "image": "shop/bad.png"}, {"key": "b", "text": "green"}),
    ]
    manifest = a_manifest(tmp_path / "rows.jsonl", rows)
    captions = ["shop/a.png,one", "shop/a.png,two", "shop/bad.png,one", "shop/bad.png,two", "shop/no.png,one"]
    table = a_folder(tmp_path, {"captions.csv": "image,caption\n" + "\n".join(captions)}) / "captions.csv"

    def planned_and_done(source: Path) -> list[tuple[object, ...]]:
        request = Request(source, delete_missing=True)
        reports = dry_run(deps.engine, lenient, request), ingest_source(deps, lenient, request)
        return [
            (one.read, one.unchanged, one.embedded, one.updated, one.deleted, one.not_deleted, one.reasons)
            for one in reports
        ]

    for source in (folder, manifest, table):
        planned, done = planned_and_done(source)
        assert planned == done
    (folder / "a.png").unlink()
    (folder / "b.png").write_bytes(b"none")
    manifest.write_text(manifest.read_text().split("\n", 2)[2])
    table.write_text("image,caption\nshop/b.png,one\nshop/b.png,two\n")
    for source in (folder, manifest, table):
        planned, done = planned_and_done(source)
        assert planned == done


def test_a_dry_run_names_the_error_with_which_the_run_ends(deps: Deps, settings: Settings, tmp_path: Path):
    strict = settings.model_copy(update={"max_reject_share": 0.1})
    bad = Request(a_folder(tmp_path / "bad", {"a.png": png("red"), "b.png": b"none"}))
    empty = Request(a_folder(tmp_path / "empty", {"a.doc": "none"}))

    for asked, error in ((bad, TooManyRejects), (empty, EmptySource)):
        planned = failure_of(dry_run(deps.engine, strict, asked), strict, asked)
        with pytest.raises(error) as done:
            ingest_source(deps, strict, asked)
        assert planned == str(done.value)
    assert failure_of(dry_run(deps.engine, settings, Request(tmp_path)), settings, Request(tmp_path)) is None


def test_a_step_that_is_tried_again_is_not_its_own_duplicate(deps: Deps, settings: Settings):
    collection = open_collection(deps, settings)
    run = IngestRun(uuid4(), "test", collection, ("en",), Limits(10**6, 5))
    rows = [a_record("a", texts=["red"]), a_record("b", texts=["blue"])]
    with deps.sessions.begin() as session:
        runs.start_run(session, run.id, "ingest", source="test")

    with Workers(deps.encoder.preparation, 0) as workers:
        job = Job(deps, run, ImageCache(workers), Clock())
        [fetched] = read_batches(run, rows, BatchSize(10, 10))
        _, decoding = (start_decoding(job, fetched) for _ in range(2))
        _, planned = (store_records(job, decoding) for _ in range(2))
        encoded = encode_batch(job, planned)
        first, second = (write_points(job, encoded) for _ in range(2))

    assert first == second
    assert (first.counts["embedded"], first.counts["rejected"]) == (2, 0)
    assert (points(deps), rows_of(deps, "marks")) == (2, 2)


def test_a_crash_between_points_and_marks_leaves_work_to_repeat_and_no_false_promise(
    deps: Deps, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red")})
    with monkeypatch.context() as crashing:
        crashing.setattr(catalog, "mark_embedded", _crash)
        with pytest.raises(KeyboardInterrupt):
            ingest(deps, settings, folder)
    assert (points(deps), rows_of(deps, "marks")) == (1, 0)

    report = ingest(deps, settings, folder)

    assert (report.embedded, points(deps), rows_of(deps, "marks")) == (1, 1, 1)


def test_an_item_that_left_after_a_crash_before_its_mark_leaves_no_point(
    deps: Deps, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red"), "b.png": png("blue")})
    with monkeypatch.context() as crashing:
        crashing.setattr(catalog, "mark_embedded", _crash)
        with pytest.raises(KeyboardInterrupt):
            ingest(deps, settings, folder)
    (folder / "b.png").unlink()

    ingest(deps, settings, folder, delete_missing=True)

    assert points(deps) == rows_of(deps, "marks") == 1


def test_a_delete_that_was_cut_short_is_finished_by_the_next_run(
    deps: Deps, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red"), "b.png": png("blue")})
    ingest(deps, settings, folder)
    (folder / "b.png").unlink()
    with monkeypatch.context() as crashing:
        crashing.setattr(qdrant, "delete_everywhere", _crash)
        with pytest.raises(KeyboardInterrupt):
            ingest(deps, settings, folder, delete_missing=True)
    assert points(deps) == 2

    ingest(deps, settings, folder)

    assert points(deps) == rows_of(deps, "marks") == 1


def test_a_run_that_died_is_closed_by_the_next(deps: Deps, settings: Settings, tmp_path: Path):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red")})
    dead = uuid4()
    with deps.sessions.begin() as session:
        runs.start_run(session, dead, "ingest", source="shop", location=str(folder))
        catalog.claim(session, dead, {item_id("shop", "a.png"): "a.png"})

    ingest(deps, settings, folder)

    with deps.sessions() as session:
        outcomes = {run.id == dead: run.outcome for run in runs.recent_runs(session, limit=5)}
    assert outcomes == {True: "crashed", False: "completed"}
    assert rows_of(deps, "seen") == 0


def test_a_lost_index_is_filled_again(deps: Deps, settings: Settings, tmp_path: Path):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red"), "b.png": png("blue")})
    ingest(deps, settings, folder)
    deps.vectors.delete_collection(qdrant.collection_name(deps.encoder.fingerprint))

    report = ingest(deps, settings, folder)

    assert report.embedded == 2
    assert keys_found(deps, "red") == ["a.png", "b.png"]


def test_another_model_is_refused_before_anything_is_written(deps: Deps, settings: Settings, tmp_path: Path):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red")})
    ingest(deps, settings, folder)
    other = replace(deps, encoder=ColourEncoder("clip", "clip1"))

    with pytest.raises(qdrant.ModelMismatch, match="sightline reindex --model clip"):
        ingest(other, settings, folder)

    assert points(deps) == 1


def test_a_collection_is_made_and_searched_as_the_settings_say(
    deps: Deps, settings: Settings, served: QdrantClient, tmp_path: Path
):
    there = replace(deps, vectors=served)
    files: dict[str, bytes | str] = {f"{colour}.png": png(colour) for colour in ("red", "green", "blue")}
    folder = a_folder(tmp_path / "shop", files)
    asked = Qdrant(quantization="int8", short_dim=2)

    ingest(there, settings.model_copy(update={"qdrant": asked}), folder)

    made = qdrant.active_collection(served)
    assert (made.quantization, made.short_dim) == ("int8", 2)
    assert keys_found(there, "green")[0] == "green.png"
    later = asked.model_copy(update={"quantization": "binary"})
    ingest(there, settings.model_copy(update={"qdrant": later}), folder)
    assert qdrant.active_collection(served).quantization == "binary"


def test_vectors_cannot_be_shortened_to_more_than_they_have(deps: Deps, settings: Settings, tmp_path: Path):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red")})
    asked = Qdrant(short_dim=deps.encoder.dim)

    with pytest.raises(BadSettings, match=r"SIGHTLINE_QDRANT__SHORT_DIM.*set fewer"):
        ingest(deps, settings.model_copy(update={"qdrant": asked}), folder)

    assert not deps.vectors.get_collections().collections


def test_two_runs_of_one_source_never_overlap(deps: Deps, settings: Settings, tmp_path: Path):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red")})

    with source_lock(deps.engine, "shop"), pytest.raises(Busy, match="'shop' is being"):
        ingest(deps, settings, folder)

    ingest(deps, settings, folder)


def test_folders_of_one_name_in_two_places_are_not_mixed_by_accident(
    deps: Deps, settings: Settings, tmp_path: Path
):
    here = a_folder(tmp_path / "here" / "shop", {"a.png": png("red")})
    there = a_folder(tmp_path / "there" / "shop", {"a.png": png("blue")})
    ingest(deps, settings, here)

    with pytest.raises(OtherLocation, match="--name"):
        ingest(deps, settings, there)

    assert ingest(deps, settings, there, name="other shop").embedded == 1
    assert points(deps) == 2


def test_pictures_need_not_be_kept(deps: Deps, settings: Settings, tmp_path: Path):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red")})

    ingest(replace(deps, blobs=None), settings, folder)

    assert keys_found(deps, "red") == ["a.png"]
    assert not (tmp_path / "blobs").exists()


@pytest.mark.parametrize(("seconds", "steps"), [(0, [4, 4, 2]), (3600, [10])])
def test_a_step_takes_as_many_batches_as_it_has_time_for_and_the_bar_moves_with_each(
    deps: Deps,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    steps: list[int],
):
    monkeypatch.setattr(pipeline, "STEP_S", seconds)
    manifest = a_manifest(tmp_path / "notes.jsonl", [{"key": f"{n}", "text": "red"} for n in range(10)])
    sizes: list[int] = []
    moved: list[int] = []

    def step(work: Callable[[], int]) -> int:
        sizes.append(work())
        return sizes[-1]

    ingest_source(
        deps, settings, Request(manifest), step=step, progress=lambda _stage, done, _total: moved.append(done)
    )

    assert sizes == steps
    assert moved == [4, 8, 10]


def test_the_report_is_json(deps: Deps, settings: Settings, tmp_path: Path):
    report = ingest(deps, settings, a_folder(tmp_path / "shop", {"a.png": png("red")}))

    document = json.loads(json.dumps(report.as_json()))

    assert document.keys() >= {"read", "unchanged", "embedded", "rejected", "deleted", "seconds"}
    assert document["read"] == 1


def _crash(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_source_is_read_once_and_its_length_is_known_from_that(
    deps: Deps, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = a_folder(tmp_path / "shop", {f"{n}.png": png("red", (16, 16 + n)) for n in range(5)})
    reads: list[Path] = []
    totals: list[int] = []

    def counted(location: Path, *given: Any) -> Iterator[Any]:
        reads.append(location)
        return read_source(location, *given)

    monkeypatch.setattr(request, "read_source", counted)

    ingest_source(deps, settings, Request(folder), progress=lambda _stage, _done, total: totals.append(total))
    ingest_source(
        deps, settings, Request(folder, limit=2), progress=lambda _stage, _done, total: totals.append(total)
    )

    assert reads == [folder] * 2
    assert totals
    assert totals[0] == 5
    assert totals[-1] == 2
