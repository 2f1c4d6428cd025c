"""The models page: comparison, promotion, re-index and rollback, each confirmed."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from playwright.sync_api import Browser, Page, expect
from pydantic import SecretStr

from flows.config.settings import Qdrant, Settings
from flows.console.context import ConsoleContext
from flows.console.pages import models, rejects
from flows.service.model_overview import ModelOverview, read_model_overview
from flows.service.observer import Observer
from flows.service.pool import Backend
from storage import qdrant
from storage.postgres import runs
from storage.postgres.runs import StageProgress
from tests.console.conftest import PATIENCE_S, SHOTS, Running, sign_in
from tests.support.processes import wait_until


@pytest.fixture(scope="module")
def running(workshop: Running) -> Running:
    """The active collection changes here, after all others are done with it."""
    return workshop


def seen(running: Running) -> ModelOverview:
    backend = Backend(running.settings)
    found = read_model_overview(backend, decisions=10)
    backend.close()
    return found


def searched(running: Running) -> str:
    """The collection that searches go to, as Qdrant has it."""
    backend = Backend(running.settings)
    with backend.vectors() as client:
        collection = qdrant.active_collection(client)
    backend.close()
    assert collection is not None
    return collection.name


def test_it_shows_where_models_come_from_and_how_good_they_are(page: Page, running: Running):
    lineage = seen(running)
    [(_, given), (depth, candidate)] = lineage.models
    [recall] = [
        one.value
        for one in lineage.measured
        if (one.model, one.direction, one.metric) == (candidate.fingerprint, "image_to_text", "recall@1")
    ]

    page.goto("/models")

    row = page.get_by_role("row").filter(has_text=f"└ {candidate.name}")
    expect(row).to_contain_text("candidate")
    expect(row).to_contain_text("rejected")
    expect(page.get_by_role("row").filter(has_text="active")).to_contain_text(
        f"{lineage.points[qdrant.collection_name(given.fingerprint)]} points"
    )
    expect(page.get_by_role("img", name="Recall, text to image").locator("canvas")).to_be_visible()
    measured = page.get_by_role("row").filter(has_text=candidate.name)
    expect(measured.filter(has_text="image to text")).to_contain_text(f"{recall:.1%}")
    expect(page.get_by_role("row").filter(has_text="held-out")).to_contain_text("failed")
    assert depth == 1


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.full)])  # dark: search
def test_it_fits_a_phone_in_both_themes(browser: Browser, running: Running, scheme: str):
    phone = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    sign_in(phone.context, running)

    phone.goto(f"{running.url}/models")

    expect(phone.get_by_text("Promotion gate decisions")).to_be_visible()
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    phone.screenshot(path=SHOTS / f"models_phone_{scheme}.png", full_page=True)
    phone.close()


def test_how_far_a_run_is_is_shown_while_it_goes_on(page: Page, running: Running):
    now, run = datetime.now(UTC), uuid4()
    told = StageProgress("train", 30, 120, now - timedelta(seconds=10), 0, now)
    backend = Backend(running.settings)
    page.goto("/models")

    with backend.sessions() as sessions, sessions.begin() as session:
        runs.start_run(session, run, "finetune")
        runs.save_progress(session, run, told)
    expect(page.get_by_text("finetune: train, 30 of 120, about")).to_be_visible()
    with backend.sessions() as sessions, sessions.begin() as session:
        runs.end_run(session, run, "completed", counts={}, seconds={})

    expect(page.get_by_text("finetune: train")).to_have_count(0)
    backend.close()


def test_without_postgres_it_says_what_to_do(tmp_path: Path):
    nowhere = "127.0.0.1:1"
    url = SecretStr(f"postgresql+psycopg://nobody@{nowhere}/none")
    backend = Backend(Settings(home=tmp_path, database_url=url, qdrant=Qdrant(url=f"http://{nowhere}")))
    context = ConsoleContext(backend, Observer(backend), protected=False)

    said = (
        models.read_models(context, models.ModelsParams()),
        rejects.read_rejects(context, rejects.RejectFilter()),
    )

    backend.close()
    for sentence in said:
        assert "is the server of SIGHTLINE_DATABASE_URL running?" in str(sentence)


def test_a_promotion_that_is_not_confirmed_does_not_happen(page: Page, running: Running):
    many = len(seen(running).decisions)
    page.goto("/models")

    page.get_by_role("button", name="Promote…").click()
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Escape")

    expect(page.get_by_role("dialog")).to_have_count(0)
    assert len(seen(running).decisions) == many


@pytest.mark.full  # commands do the same in tests/cli/test_stores.py and tests/flows/test_reindex.py
def test_a_model_is_promoted_by_force_searches_move_to_it_and_go_back(page: Page, running: Running):
    before = seen(running)
    given, candidate = (life for _, life in before.models)
    old, new = (qdrant.collection_name(life.fingerprint) for life in (given, candidate))
    many = before.points[old]
    page.goto("/models")
    row = page.get_by_role("row").filter(has_text=f"└ {candidate.name}")

    row.get_by_role("button", name="Promote…").click()
    expect(page.get_by_role("dialog")).to_contain_text("Searches stay as they are, until you re-index.")
    page.get_by_role("checkbox", name="Promote it regardless of the comparison").click()
    page.screenshot(path=SHOTS / "models_promote.png")
    page.get_by_role("button", name="Compare and decide").click()

    expect(row.get_by_role("button", name="Re-index…")).to_be_visible()
    decision = seen(running).decisions[0]
    assert (decision.candidate, decision.promoted, decision.forced) == (candidate.name, True, True)
    assert [one.name for one in decision.checks] == ["held-out"]
    assert searched(running) == old

    row.get_by_role("button", name="Re-index…").click()
    expect(page.get_by_role("dialog")).to_contain_text(f"{candidate.name} embeds {many} records, in about")
    expect(page.get_by_role("dialog")).to_contain_text("The old one stays for 7 days")
    page.get_by_role("button", name="Re-index", exact=True).click()

    expect(row).to_contain_text("active")
    assert searched(running) == new
    after = seen(running)
    assert after.points == {old: many, new: many}

    page.get_by_role("button", name=f"Roll back to {running.model.name}").click()
    expect(page.get_by_role("dialog")).to_contain_text(f"(collection {new})")
    expect(page.get_by_role("dialog")).to_contain_text(f"(collection {old})")
    page.get_by_role("button", name="Roll back", exact=True).click()

    wait_until(lambda: searched(running) == old, patience_s=PATIENCE_S)
    expect(row).to_contain_text("retired")
    active = seen(running).active
    assert active is not None
    assert active.fingerprint == given.fingerprint
