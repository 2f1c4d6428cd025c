"""Figures for monitoring, after real runs."""

import os
import signal
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from flows.config.settings import Qdrant, Settings
from flows.datasets.test_sets import EvaluationChoice, choose_test_set
from flows.evaluation.evaluate import evaluate
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.maintenance.delete import delete_items
from flows.resources.connections import Deps
from flows.service.observer import Observer, observe, read_catalog_status
from flows.service.pool import Backend
from storage.embedded.qdrant.process.discovery import find
from storage.errors import StoreUnavailable
from storage.postgres import statistics
from storage.postgres.catalog import Selection
from storage.postgres.statistics import Figures, RejectCount
from storage.records import item_id
from tests.support.builders import a_folder, a_manifest, png
from tests.support.processes import wait_until

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


def ingest(deps: Deps, settings: Settings, source: Path) -> str:
    report = ingest_source(deps, settings, Request(source))
    with deps.sessions() as session:
        return read_catalog_status(session, datetime.now(UTC)).collection or report.source


def figures_of(deps: Deps, collection: str | None) -> Figures:
    with deps.sessions() as session:
        return statistics.figures(session, collection)


def run_sql(deps: Deps, statement: str, **values: object) -> None:
    with deps.sessions.begin() as session:
        session.execute(text(statement), values)


def test_records_are_searchable_pending_or_deleted(deps: Deps, settings: Settings, tmp_path: Path):
    names = ("a", "b", "c", "d")
    shop = a_folder(
        tmp_path / "shop", {f"{name}.png": png("red", (16, 16 + n)) for n, name in enumerate(names)}
    )
    collection = ingest(deps, settings, shop)
    delete_items(deps, Selection(("a.png",)), settings.home / "receipts", for_s=0)
    run_sql(deps, "delete from marks where item_id = :id", id=item_id("shop", "b.png"))
    run_sql(deps, "update items set updated = :at where key = 'b.png'", at=NOON)
    run_sql(
        deps,
        "update items set content_hash = 'other', updated = :at where key = 'c.png'",
        at=NOON - timedelta(hours=2),
    )

    seen = figures_of(deps, collection)

    assert (seen.items, seen.searchable, seen.pending, seen.deleted) == (3, 1, 2, 1)
    assert (seen.waiting_since, seen.newest_waiting) == (NOON - timedelta(hours=2), NOON)
    assert seen.age_s(NOON) == 7200


def test_before_there_is_a_collection_every_record_waits(deps: Deps, settings: Settings, tmp_path: Path):
    ingest(deps, settings, a_folder(tmp_path / "shop", {"a.png": png()}))

    assert figures_of(deps, None).pending == 1


def test_nothing_stored_is_nothing_late(deps: Deps):
    nothing = figures_of(deps, None)

    assert (nothing.items, nothing.pending, nothing.age_s(NOON)) == (0, 0, 0.0)


def test_open_rejects_are_counted_by_source_and_reason(deps: Deps, settings: Settings, tmp_path: Path):
    lenient = settings.model_copy(update={"max_reject_share": 1.0})
    broken = {f"{name}.png": b"no picture" for name in ("a", "b")}
    ingest(deps, lenient, a_folder(tmp_path / "shop", broken))
    ingest(deps, lenient, a_manifest(tmp_path / "words.jsonl", [{"key": "a", "image": "lost.png"}]))

    with deps.sessions() as session:
        counted = statistics.count_rejects(session)

    assert counted == [
        RejectCount("shop", "not_a_picture", 2),
        RejectCount("words", "missing_file", 1),
    ]


def test_each_day_has_what_its_ingests_did_and_how_good_searches_were(
    deps: Deps, settings: Settings, tmp_path: Path
):
    files = {"a.png": png("red"), "a.txt": "red", "b.png": png("blue"), "b.txt": "blue", "c.png": b"none"}
    ingest(deps, settings, a_folder(tmp_path / "shop", files))
    run_sql(deps, "update runs set started = :at, seconds = '{\"total\": 2.0}'", at=NOON)
    everything = choose_test_set(deps, settings, EvaluationChoice(), ())
    evaluate(deps, settings, (), everything, load=lambda *_: deps.encoder)
    run_sql(deps, "update evaluations set at = :at", at=NOON - timedelta(days=1))

    with deps.sessions() as session:
        before, yesterday, today = statistics.days(session, NOON, 3)

    assert (before.day, before.read, before.recall) == (date(2026, 3, 8), 0, None)
    assert (yesterday.read, yesterday.records_a_second, yesterday.recall) == (0, None, 1.0)
    assert (today.read, today.rejected, today.records_a_second, today.recall) == (3, 1, 1.5, None)


def test_a_look_at_a_home_sees_both_stores_and_one_that_goes_away_and_comes_back(home: Path):
    backend = Backend(Settings(home=home, decode_workers=0))
    fresh = observe(backend)
    access = find(home)
    assert access is not None
    os.kill(access.pid, signal.SIGKILL)
    wait_until(lambda: find(home) is None)

    again = observe(backend)

    backend.close()
    for seen in (fresh, again):
        assert (seen.postgres_problem, seen.qdrant_problem) == (None, None)
        assert seen.catalog is not None
        assert seen.catalog.figures.items == 0
        assert seen.index is not None
        assert seen.index.collection is None


def test_a_store_that_is_away_is_a_sentence_and_the_other_one_is_seen(home: Path):
    nowhere = Qdrant(url="http://127.0.0.1:9")
    backend = Backend(Settings(home=home, qdrant=nowhere, decode_workers=0))

    seen = observe(backend)

    backend.close()
    assert seen.catalog is not None
    assert seen.index is None
    assert "SIGHTLINE_QDRANT__URL" in str(seen.qdrant_problem)


def test_what_a_caller_does_with_a_store_that_goes_away_names_the_store(home: Path):
    backend = Backend(Settings(home=home, qdrant=Qdrant(url="http://127.0.0.1:9"), decode_workers=0))

    with pytest.raises(StoreUnavailable, match="SIGHTLINE_QDRANT__URL"), backend.vectors() as client:
        client.get_collections()

    backend.close()


def test_whoever_has_done_something_is_shown_it_at_once(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flows.service.observer.MIN_PAUSE_S", 3600.0)
    with closing(Backend(Settings(home=home, decode_workers=0))) as backend:
        observer = Observer(backend)
        with observer.running():
            for _ in range(3):  # more often than it looks by itself within the hour
                before = observer.latest

                observer.refresh()

                wait_until(lambda before=before: observer.latest.at > before.at)
