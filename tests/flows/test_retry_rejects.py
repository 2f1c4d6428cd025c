"""Rejects that can be worked off: just those are tried again, and the list does not grow by what it has."""

from pathlib import Path

import pytest
from sqlalchemy import text

from flows.config.settings import Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.ingestion.retry_rejects import RetryReport, retry_rejects
from flows.resources.connections import Deps
from storage.postgres import rejects
from tests.support.builders import a_folder, a_manifest, png

ROWS = [
    {"key": "a", "text": "red"},
    {"key": "b", "image": "b.png"},
    {"key": "c", "texts": [{"text": "blau", "lang": "de"}]},
    {"key": "a", "text": "green"},
    {"text": "without a key"},
]


@pytest.fixture
def lenient(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_reject_share": 1.0})


@pytest.fixture
def manifest(deps: Deps, lenient: Settings, tmp_path: Path) -> Path:
    """Five rows, of which one is good."""
    path = a_manifest(tmp_path / "shop" / "shop.jsonl", ROWS)
    ingest_source(deps, lenient, Request(path))
    return path


def open_rejects(deps: Deps) -> dict[str, str]:
    with deps.sessions() as session:
        return {reject.place: reject.reason for reject in rejects.open_rejects(session)}


def items(deps: Deps) -> dict[str, str]:
    with deps.sessions() as session:
        rows = session.execute(text("select key, texts -> 0 ->> 'text' from items where deleted is null"))
        return dict(rows.tuples().all())


def test_only_rejects_are_tried_and_what_passes_is_resolved(
    deps: Deps, lenient: Settings, tmp_path: Path, manifest: Path
):
    a_folder(tmp_path / "shop", {"b.png": png("red")})
    a_manifest(manifest, [*ROWS[:4], {"key": "e", "text": "blue"}, {"key": "f", "text": "not asked for"}])
    seen = len(deps.encoder.seen_texts)

    done = retry_rejects(deps, lenient)

    assert done == [RetryReport("shop", tried=4, open=2)]
    assert items(deps) == {"a": "red", "b": None, "e": "blue"}
    assert open_rejects(deps) == {"line 3": "nothing_to_embed", "line 4": "duplicate_key"}
    assert deps.encoder.seen_texts[seen:] == ["blue"]


def test_a_reason_leaves_the_others_alone(deps: Deps, lenient: Settings, tmp_path: Path, manifest: Path):
    a_folder(tmp_path / "shop", {"b.png": png("red")})
    a_manifest(manifest, [*ROWS[:4], {"key": "e", "text": "blue"}])

    assert retry_rejects(deps, lenient, reason="missing_file") == [RetryReport("shop", tried=1, open=0)]

    assert set(open_rejects(deps)) == {"line 3", "line 4", "line 5"}


def test_some_rejects_leave_the_others_alone(deps: Deps, lenient: Settings, tmp_path: Path, manifest: Path):
    a_folder(tmp_path / "shop", {"b.png": png("red")})
    a_manifest(manifest, [*ROWS[:4], {"key": "e", "text": "blue"}])
    with deps.sessions() as session:
        [chosen] = rejects.open_rejects(session, reason="missing_file")

    done = retry_rejects(deps, lenient, ids=[chosen.id])

    assert done == [RetryReport("shop", tried=1, open=0)]
    assert set(open_rejects(deps)) == {"line 3", "line 4", "line 5"}


def test_the_languages_of_the_ingest_are_those_of_the_retry(deps: Deps, lenient: Settings, tmp_path: Path):
    rows = [{"key": "c", "image": "c.png", "texts": [{"text": "blau", "lang": "de"}]}]
    path = a_manifest(tmp_path / "shop.jsonl", rows)
    ingest_source(deps, lenient, Request(path, langs=("de",)))
    a_folder(tmp_path, {"c.png": png("blue")})

    retry_rejects(deps, lenient)

    assert deps.encoder.seen_texts == ["blau"]


def test_a_row_that_the_source_no_longer_has_is_resolved(deps: Deps, lenient: Settings, manifest: Path):
    a_manifest(manifest, ROWS[:1])

    assert retry_rejects(deps, lenient) == [RetryReport("shop", tried=4, open=0)]
    assert open_rejects(deps) == {}


def test_a_source_that_is_gone_is_said_to_be_gone(deps: Deps, lenient: Settings, manifest: Path):
    manifest.unlink()

    [done] = retry_rejects(deps, lenient)

    assert (done.tried, done.open) == (4, 4)
    assert "there is nothing there" in done.problem


def test_the_same_failure_keeps_one_row_also_where_it_has_moved(
    deps: Deps, lenient: Settings, manifest: Path
):
    first = {"key": "first", "text": "red"}
    a_manifest(manifest, [first, ROWS[1], {"key": "last", "text": "red"}])
    ingest_source(deps, lenient, Request(manifest))
    a_manifest(manifest, [first, first | {"key": "second"}, ROWS[1]])

    ingest_source(deps, lenient, Request(manifest, limit=3))

    assert open_rejects(deps) == {"line 3": "missing_file"}
