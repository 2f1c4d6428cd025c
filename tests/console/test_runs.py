"""The runs page: runs in progress, flow controls, history, and one run."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID, uuid4

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from pydantic import SecretStr
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from flows.console.components.consistency import read_comparisons
from flows.console.components.run_history import PAGE, RunFilter, read_runs
from flows.console.context import ConsoleContext
from flows.orchestration.prefect_client import DeployedFlow, open_prefect
from flows.orchestration.server import address_file
from flows.orchestration.server_access import password_file
from flows.resources.comparison import record_comparison
from flows.resources.connections import open_stores
from flows.service.observer import Observer
from flows.service.pool import Backend
from flows.tracking.retry_policy import hold
from flows.tracking.run_log import tracked_run
from storage.embedded.postgres.server import postgres_url
from storage.postgres.locks import flow_lock
from storage.postgres.runs import Run, failed_runs, recent_runs
from tests.console.conftest import SHOTS, Running, reload, sign_in

pytestmark = pytest.mark.usefixtures("compared_afterwards")


@pytest.fixture(scope="module")
def postgres(running: Running) -> Iterator[Engine]:
    engine = create_engine(postgres_url(running.home))
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def compared_afterwards(running: Running) -> Iterator[None]:
    """Leave stores that agree for the next tests, as after the first comparison."""
    yield
    with open_stores(running.settings) as stores:
        record_comparison(stores, running.settings)


@contextmanager
def items_locked(engine: Engine) -> Iterator[None]:
    """Block readers of the items until this ends."""
    with engine.begin() as connection:
        connection.execute(text("lock table items in access exclusive mode"))
        yield


@contextmanager
def old_runs(engine: Engine, many: int) -> Iterator[None]:
    """So many ingests of the source `old`, an hour apart, which are gone afterwards."""
    begun = datetime.now(UTC) - timedelta(days=9)
    row = "insert into runs (id, flow, source, started, ended, outcome, counts, seconds)"
    values = " values (:id, 'ingest', 'old', :at, :at, 'completed', :counts, '{}')"
    rows = [
        {"id": uuid4(), "at": begun - timedelta(hours=number), "counts": json.dumps({"read": number})}
        for number in range(many)
    ]
    with engine.begin() as connection:
        connection.execute(text(row + values), rows)
    yield
    with engine.begin() as connection:
        connection.execute(text("delete from runs where source = 'old'"))


def last(engine: Engine, **wanted: Any) -> Run:
    with Session(engine) as session:
        [run] = recent_runs(session, 1, **wanted)
        return run


def deployed(running: Running, flow: str) -> DeployedFlow:
    with open_prefect(running.home) as prefect:
        return next(one for one in prefect.deployed() if one.flow == flow)


def card(page: Page, flow: str) -> Locator:
    return page.get_by_role("article").filter(has=page.get_by_role("link", name=flow, exact=True))


def refuse(page: Page) -> None:
    """Close a dialog without confirming."""
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def history(page: Page) -> Locator:
    return page.locator(".sl-table tbody tr")


def test_a_run_that_hangs_is_seen_on_both_pages_and_cancelled(page: Page, postgres: Engine):
    page.goto("/runs")
    with items_locked(postgres):
        page.get_by_role("button", name="Start reconcile").click()
        expect(page.get_by_text("reconcile is accepted")).to_be_visible()
        expect(page.get_by_text(re.compile("^reconcile starts soon"))).to_be_visible()
        expect(card(page, "reconcile")).to_contain_text("starting")
        expect(page.get_by_role("button", name="Start reconcile")).to_be_disabled()
        page.goto("/integrity")
        cancel = card(page, "reconcile").get_by_role("button", name="Cancel reconcile")
        cancel.click()
        refuse(page)
        assert last(postgres, flow="reconcile").outcome == "running"
        page.goto("/runs")
        cancel.click()
        page.get_by_role("button", name="Cancel the run").click()
        expect(card(page, "reconcile")).to_have_count(0)

    expect(history(page).first).to_contain_text("cancelled")
    assert last(postgres, flow="reconcile").outcome == "cancelled"
    with Session(postgres) as session:
        assert [run for run in failed_runs(session) if run.flow == "reconcile"] == []


@pytest.mark.full  # tests/flows/test_schedules.py has it without a browser
def test_a_run_that_finds_another_process_at_its_work_is_reported(page: Page, postgres: Engine):
    page.goto("/runs")
    with hold(flow_lock(postgres, "reconcile"), for_s=0):
        page.get_by_role("button", name="Start reconcile").click()

        expect(page.get_by_text(re.compile("^reconcile was skipped .* ago: "))).to_be_visible()
    expect(page.get_by_text("Nothing runs now.")).to_be_visible()


@pytest.mark.full
def test_the_page_of_a_run_follows_it_to_its_end_with_its_log(page: Page, running: Running, postgres: Engine):
    with items_locked(postgres):
        with open_prefect(running.home) as prefect:
            begun = prefect.start("reconcile")
        page.goto("/integrity")
        card(page, "reconcile").get_by_role("link", name="reconcile").click()
        expect(page.get_by_role("button", name="Cancel reconcile")).to_be_visible()
        expect(page.get_by_role("log")).to_contain_text("Beginning flow run")

    expect(page.get_by_role("row", name=re.compile("outcome completed"))).to_be_visible()
    expect(page.get_by_role("log")).to_contain_text("Finished in state Completed()")
    expect(page.get_by_text("first, with its password")).to_contain_text(str(password_file(running.home)))
    link = page.get_by_role("link", name="In Prefect").get_attribute("href")
    assert re.fullmatch(rf"http://127.0.0.1:\d+/runs/flow-run/{begun}", str(link))

    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Sign in to Prefect").click()
    prefects = opened.value
    prefects.locator("input[type=password]").fill(password_file(running.home).read_text().strip())
    prefects.keyboard.press("Enter")
    expect(prefects.get_by_text("Completed").first).to_be_visible()
    assert prefects.url == link
    prefects.close()


@pytest.mark.full  # tests/console/test_models.py has an answer of no
def test_what_changes_much_is_started_only_after_a_yes(page: Page, running: Running, postgres: Engine):
    page.goto("/runs")
    page.get_by_role("button", name="Start purge").click()
    expect(page.get_by_role("dialog")).to_contain_text("0 collections that searches left more than 7 days")
    refuse(page)
    page.get_by_role("button", name="Start finetune").click()
    expect(page.get_by_role("dialog")).to_contain_text("from 4 stored records")
    refuse(page)
    with open_prefect(running.home) as prefect:
        assert prefect.active_runs() == []

    page.get_by_role("button", name="Start purge").click()
    page.get_by_role("dialog").get_by_role("button", name="Start purge").click()

    expect(history(page).first).to_contain_text("purge")
    expect(history(page).first).to_contain_text("completed")
    assert last(postgres, flow="purge").counts["orphans"] == 0


def test_a_schedule_is_paused_and_resumed_by_the_keyboard_and_the_focus_stays(page: Page, running: Running):
    page.goto("/runs")
    page.get_by_role("button", name="Pause evaluate").focus()

    page.keyboard.press("Enter")

    resume = page.get_by_role("button", name="Resume evaluate")
    expect(resume).to_be_focused()
    expect(page.locator("li").filter(has_text="evaluate")).to_contain_text("paused")
    assert deployed(running, "evaluate").paused
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Pause evaluate")).to_be_focused()
    assert not deployed(running, "evaluate").paused
    expect(page.get_by_role("button", name="Start backup")).to_have_count(0)
    expect(page.get_by_role("button", name="Start promote")).to_have_count(0)


def test_a_run_at_a_terminal_tells_how_far_it_is_and_cannot_be_cancelled_here(page: Page, postgres: Engine):
    sessions = sessionmaker(postgres)
    with hold(flow_lock(postgres, "ingest"), for_s=0) as lock:
        with tracked_run(sessions, lock, "ingest", source="attic") as run:
            run.counts = {"read": 1200, "embedded": 1180, "rejected": 20}
            run.seconds = {"decode": 10.0, "embed": 30.0}
            run.progress("embed", 1200, 4000)
            page.goto("/runs")

            shown = card(page, "ingest of attic")
            expect(shown).to_contain_text("embed: 1,200 of 4,000")
            expect(shown.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "0.3")
            expect(shown).to_contain_text("1,200 read · 1,180 embedded · 20 rejected")
            expect(shown.get_by_role("img", name="decode 10.0 s, embed 30.0 s")).to_be_visible()
            expect(shown).to_contain_text("started at a terminal: end it there")
            expect(shown.get_by_role("button")).to_have_count(0)
        expect(shown).to_have_count(0)
    with postgres.begin() as connection:
        connection.execute(text("delete from runs where source = 'attic'"))


def test_history_is_narrowed_and_a_reload_shows_the_same(page: Page):
    page.goto("/runs")
    page.get_by_role("combobox", name="flow").click()
    page.get_by_role("option", name="ingest").click()
    expect(history(page)).to_have_count(2)
    page.get_by_role("combobox", name="source").click()
    page.get_by_role("option", name="words").click()
    expect(history(page)).to_have_count(1)
    expect(page).to_have_url(re.compile(r"/runs\?flow=ingest&source=words$"))

    reload(page)

    expect(history(page)).to_have_count(1)
    expect(history(page)).to_contain_text(re.compile(r"ingest\s*words\s*completed"))
    expect(history(page).get_by_role("img", name=re.compile("Seconds per stage: .*embed"))).to_be_visible()
    page.goto("/runs?flow=ingest&outcome=failed")
    expect(page.get_by_text("There is no such run.")).to_be_visible()


def test_history_goes_on_page_by_page(page: Page, postgres: Engine):
    with old_runs(postgres, 2 * PAGE + 1):
        page.goto("/runs?source=old")
        reads = [row.split("\t")[6].strip() for row in history(page).all_inner_texts()]
        for _ in range(2):
            before = history(page).first.inner_text()
            page.get_by_role("button", name="Older").click()
            expect(history(page).first).not_to_have_text(before, use_inner_text=True)
            reads += [row.split("\t")[6].strip() for row in history(page).all_inner_texts()]
        expect(page.get_by_role("button", name="Older")).to_be_disabled()

        reload(page)

        expect(history(page)).to_have_count(1)
        page.get_by_role("button", name="Newer").click()
        expect(history(page)).to_have_count(PAGE)
    assert reads == [str(number) for number in range(2 * PAGE + 1)]


def test_everything_on_record_of_a_run_is_shown(page: Page, postgres: Engine):
    run = last(postgres, source="shop")
    page.goto("/runs")
    page.get_by_role("row").filter(has_text="shop").get_by_role("link").click()

    expect(page).to_have_url(re.compile(f"/runs/{run.id}$"))
    for fact in ("source shop", "outcome completed", "read 4", "embedded 3", "reasons: not a picture 1"):
        expect(page.get_by_role("row", name=fact, exact=True)).to_be_visible()
    expect(page.get_by_role("row", name=re.compile(r"^embed .* \d+\.\d% \d+\.\d%$"))).to_be_visible()
    expect(page.get_by_text("It ran without Prefect, which stores the logs")).to_be_visible()
    rejects = page.get_by_role("link", name="1 record rejected: see the rejects of shop")
    expect(rejects).to_have_attribute("href", "/rejects?source=shop")


def test_a_run_that_is_not_on_record_is_said_to_be_none(page: Page):
    for id in (UUID(int=0), "nonsense"):
        page.goto(f"/runs/{id}")
        expect(page.get_by_role("alert")).to_have_text(f"There is no run {id} on record.")


def test_without_prefect_the_page_says_what_to_run(page: Page, running: Running):
    address = address_file(running.home)
    aside = address.rename(address.with_suffix(".aside"))
    page.goto("/runs")

    expect(page.get_by_role("status")).to_contain_text("run: sightline up")
    page.get_by_role("button", name="Start ingest").click()
    expect(page.get_by_role("alert").filter(has_text="run: sightline up")).to_be_visible()
    expect(history(page).first).to_be_visible()
    aside.rename(address)
    expect(page.get_by_role("status").filter(has_text="sightline up")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.full)])  # dark: search
def test_they_fit_a_phone(browser: Browser, running: Running, postgres: Engine, scheme: str):
    phone = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    sign_in(phone.context, running)
    one = f"/runs/{last(postgres, source='shop').id}"
    for name, path in {"runs": "/runs", "run": one, "integrity": "/integrity"}.items():
        phone.goto(running.url + path)
        expect(phone.locator(".sl-sheet").last).to_be_visible()
        assert phone.evaluate("document.documentElement.scrollWidth") <= 390
        phone.screenshot(path=SHOTS / f"phone_{name}_{scheme}.png", full_page=True)
    phone.close()


def test_an_address_is_read_as_it_was_written():
    wanted = RunFilter("ingest", "a & b", "failed", (datetime(2026, 1, 1, tzinfo=UTC), UUID(int=1)))
    query = dict(parse_qsl(urlsplit(wanted.url()).query))

    assert RunFilter.of_query(query) == wanted
    assert RunFilter.of_query({"outcome": "odd", "before": "2026-01-01_x"}) == RunFilter()


def test_a_postgres_that_is_away_is_named_with_the_remedy(running: Running):
    away = SecretStr("postgresql+psycopg://nobody@127.0.0.1:1/none")
    backend = Backend(running.settings.model_copy(update={"database_url": away}))
    context = ConsoleContext(backend, Observer(backend), protected=False)

    for problem in (read_runs(context, RunFilter()).problem, read_comparisons(context).problem):
        assert "is the server of SIGHTLINE_DATABASE_URL running?" in str(problem)
