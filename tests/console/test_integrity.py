"""The integrity page: differences between the stores, and their repair."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from playwright.sync_api import Page, expect
from qdrant_client import QdrantClient

from flows.console.components.consistency import CollectionState, findings_text, repair_text, verdict_of
from flows.console.pages.integrity import remarks_on, verdict_text
from flows.resources.connections import open_stores
from storage import qdrant
from storage.postgres.runs import Run
from storage.records import item_id
from tests.console.conftest import Running

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def vectors(running: Running) -> Iterator[QdrantClient]:
    with open_stores(running.settings) as stores:
        yield stores.vectors


def a_comparison(outcome: str = "completed", error: str | None = None, **counts: Any) -> Run:
    ended = NOON + timedelta(seconds=3)
    return Run(uuid4(), "reconcile", None, None, NOON, ended, outcome, error, counts, {})


def test_what_differs_is_found_explained_and_repaired(page: Page, vectors: QdrantClient):
    [name] = qdrant.list_collections(vectors)
    page.goto("/integrity")
    expect(page.get_by_role("status").first).to_contain_text("Postgres and Qdrant agree.")
    expect(page.get_by_role("row").filter(has_text=name)).to_contain_text("active")
    expect(page.get_by_role("button", name="Repair…")).to_be_hidden()
    vectors.delete(name, [str(item_id("shop", "red.png"))], wait=True)

    page.get_by_role("button", name="Compare now").click()

    expect(page.get_by_role("status").first).to_contain_text("Postgres and Qdrant differ")
    expect(page.get_by_role("row").filter(has_text="searches miss them")).to_contain_text("1 record")
    expect(page.get_by_role("row").filter(has_text=name)).to_contain_text("1 fewer than Postgres says")
    page.get_by_role("button", name="Repair…").click()
    expect(page.get_by_role("dialog")).to_contain_text("embeds 1 record again")
    page.get_by_role("button", name="Start repair").click()
    expect(page.get_by_role("status").first).to_contain_text("Postgres and Qdrant agree.")
    expect(page.get_by_role("row").filter(has_text="repaired 1")).to_contain_text("repair")
    expect(page.get_by_role("row").filter(has_text="searches miss them")).to_have_count(0)
    assert qdrant.count(vectors, name) == 4


def test_a_repair_leaves_what_it_left():
    repair = a_comparison("failed", "the stores differ: 1 missing", missing=3, still={"missing": 1})

    assert verdict_of([repair]).differences == {"missing": 1}
    assert findings_text(repair) == "repaired 2, 1 missing"


def test_a_comparison_that_was_cut_off_hides_no_difference():
    crashed, differed = a_comparison("crashed"), a_comparison("failed", "the stores differ: 2 stray", stray=2)

    verdict = verdict_of([a_comparison("cancelled"), crashed, differed])

    assert verdict.last == differed
    assert verdict.differences == {"stray": 2}
    assert (
        verdict.problem
        == "The last comparison was interrupted: its process ended. Nothing is lost; compare again."
    )


def test_what_was_rejected_is_reported_in_plain_words():
    why = "TooManyDeletes: a repair would delete 9 of 10 points, more than 5%; nothing was changed"

    verdict = verdict_of([a_comparison("failed", why, stray=9), a_comparison()])

    assert verdict.problem == (
        "The last comparison failed: a repair would delete 9 of 10 points, more than 5%; nothing was changed"
    )


def test_stores_that_differ_now_do_not_agree():
    now = CollectionState("sl_a", "active", 4, 2, is_searched=True)
    verdict = verdict_of([a_comparison()])

    assert verdict_text(verdict, NOON).startswith("Postgres and Qdrant agree.")
    assert "agree" not in verdict_text(verdict, NOON, remarks_on([now]))
    assert "sl_a: 2 fewer than Postgres says" in verdict_text(verdict, NOON, remarks_on([now]))


def test_nothing_is_said_of_stores_that_were_never_compared():
    assert verdict_of([a_comparison("failed", "Busy: a repair runs")]).last is None
    assert verdict_of([]).problem is None


def test_a_repair_that_would_be_rejected_says_so_beforehand():
    assert "refuses" not in repair_text({"missing": 9}, 10)
    assert "refuses to delete more than 5% of the 100 points" in repair_text({"stray": 5}, 100)
    assert "it would delete 6 of 100 points, and refuses" in repair_text({"stray": 6}, 100)
    assert "it would delete 100 of 100 points" in repair_text({"other_model": 1}, 100)
