"""The rejects page: find rejects, understand them, see their images, retry them."""

from collections.abc import Callable
from uuid import UUID

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from flows.orchestration.prefect_client import open_prefect
from flows.service.pool import Backend
from storage.postgres import runs
from storage.postgres.rejects import Reject, open_rejects
from storage.postgres.runs import Run
from tests.console.conftest import PATIENCE_S, SHOTS, Running, reload, sign_in
from tests.support.builders import a_folder, png
from tests.support.processes import wait_until


@pytest.fixture(scope="module")
def running(workshop: Running) -> Running:
    """Rejects are resolved here, after all others are done with them."""
    return workshop


def all_rejects(running: Running, **wanted: str) -> list[Reject]:
    backend = Backend(running.settings)
    with backend.sessions() as sessions, sessions() as session:
        found = open_rejects(session, **wanted)
    backend.close()
    return found


def rejects(running: Running, source: str) -> dict[str, Reject]:
    """Open rejects of a source, by place."""
    return {reject.place: reject for reject in all_rejects(running, source=source)}


def retries(running: Running) -> list[Run]:
    backend = Backend(running.settings)
    with backend.sessions() as sessions, sessions() as session:
        found = runs.recent_runs(session, 10, flow="retry")
    backend.close()
    return found


def asked(running: Running) -> list[dict[str, object]]:
    """The parameters of the retries that Prefect has accepted and not ended."""
    with open_prefect(running.home) as prefect:
        return [begun.parameters for begun in prefect.active_runs() if begun.flow == "retry"]


def entry(page: Page, place: str) -> Locator:
    return page.get_by_role("listitem").filter(has=page.get_by_text(place, exact=True))


def eventually(holds: Callable[[], bool]) -> None:
    wait_until(holds, patience_s=PATIENCE_S)


def test_filters_narrow_the_list_and_are_in_the_address(page: Page, running: Running):
    page.goto("/rejects")
    expect(page.get_by_text(f"{len(all_rejects(running))} rejects open")).to_be_visible()

    page.get_by_role("link", name="stock · 4").click()
    page.get_by_role("link", name="missing_file · 2").click()

    expect(page.get_by_role("listitem")).to_have_count(2)
    expect(page.get_by_text("There is no image where the record says.")).to_be_visible()
    reload(page)
    expect(page.get_by_role("listitem")).to_have_count(2)
    expect(page.get_by_role("link", name="missing_file · 2")).to_have_attribute("aria-current", "true")
    assert page.url.endswith("/rejects?reason=missing_file&source=stock")


def test_a_long_list_comes_in_pages(page: Page):
    page.goto("/rejects?source=bulk")
    expect(page.get_by_role("listitem")).to_have_count(20)
    first = page.get_by_role("listitem").first.inner_text()

    page.get_by_role("link", name="Next page").click()

    expect(page.get_by_role("listitem")).to_have_count(10)
    expect(page.get_by_role("link", name="Next page")).to_be_hidden()
    page.get_by_role("link", name="First page").click()
    expect(page.get_by_role("listitem")).to_have_count(20)
    assert page.get_by_role("listitem").first.inner_text().split("\n")[0] == first.split("\n")[0]


def test_the_row_is_shown_as_text_and_never_as_markup(page: Page):
    page.goto("/rejects?source=stock")

    one = entry(page, "line 1")
    one.locator("summary").click()

    expect(one.locator(".sl-code")).to_contain_text("<b>not bold</b>")
    assert one.locator("b").count() == 0


def test_an_image_is_shown_where_the_gate_lets_it_through(page: Page):
    page.goto("/rejects?source=stock")

    entry(page, "line 4").get_by_role("button", name="Show image").click()
    entry(page, "line 5").get_by_role("button", name="Show image").click()

    shown = entry(page, "line 4").get_by_role("img", name="The image of line 4")
    expect(shown).to_have_js_property("naturalWidth", 16)
    assert str(shown.get_attribute("src")).startswith("data:image/jpeg;base64,")
    expect(entry(page, "line 5").get_by_text("not an image, it starts with")).to_have_count(2)
    assert entry(page, "line 5").get_by_role("img").count() == 0


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.full)])  # dark: search
def test_it_fits_a_phone_in_both_themes(browser: Browser, running: Running, scheme: str):
    phone = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    sign_in(phone.context, running)

    phone.goto(f"{running.url}/rejects")

    expect(phone.get_by_role("listitem").first).to_be_visible()
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    phone.screenshot(path=SHOTS / f"rejects_phone_{scheme}.png", full_page=True)
    phone.close()


def test_one_is_tried_again_and_leaves_the_list_while_another_stays_chosen(page: Page, running: Running):
    a_folder(running.folder / "stock", {"first.png": png("green")})
    page.goto("/rejects?source=stock")
    entry(page, "line 2").get_by_role("checkbox").click()

    entry(page, "line 1").get_by_role("button", name="Retry").click()

    expect(entry(page, "line 1")).to_have_count(0)
    expect(entry(page, "line 2").get_by_role("checkbox")).to_be_checked()
    assert set(rejects(running, source="stock")) == {"line 2", "line 4", "line 5"}
    expect(page.get_by_role("link", name="stock · 3")).to_be_visible()


@pytest.mark.full  # one of them is tried again anyway
def test_those_that_are_chosen_are_tried_again_and_what_fails_says_so(page: Page, running: Running):
    a_folder(running.folder / "stock", {"second.png": png("blue")})
    before = rejects(running, source="stock")
    chosen = [before["line 2"].id, before["line 5"].id]
    page.goto("/rejects?source=stock")
    for place in ("line 2", "line 5"):
        entry(page, place).get_by_role("checkbox").click()

    page.get_by_role("button", name="Retry chosen (2)").click()

    eventually(
        lambda: any({*map(UUID, map(str, one["rejects"] or []))} == {*chosen} for one in asked(running))
    )
    expect(entry(page, "line 2")).to_have_count(0)
    expect(entry(page, "line 5").get_by_text("It was retried, and is still rejected.")).to_be_visible()
    after = rejects(running, source="stock")
    assert set(after) == {"line 4", "line 5"}
    assert after["line 5"].last_seen > before["line 5"].last_seen
    assert after["line 4"].last_seen == before["line 4"].last_seen


@pytest.mark.full  # one of them is tried again anyway
def test_all_of_a_reason_and_source_are_tried_again_once_that_is_confirmed(page: Page, running: Running):
    eventually(lambda: asked(running) == [])
    many = len(retries(running))
    page.goto("/rejects?reason=no_key&source=bulk")
    page.get_by_role("button", name="Retry all…").click()
    expect(page.get_by_role("dialog")).to_contain_text("30 rows rejected as no_key from bulk")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert asked(running) == []

    page.get_by_role("button", name="Retry all…").click()
    page.get_by_role("button", name="Retry 30").click()

    eventually(lambda: len(retries(running)) > many and retries(running)[0].outcome == "completed")
    [run, *_] = retries(running)
    assert (run.source, run.counts["read"], run.counts["rejected"]) == ("bulk", 30, 30)
    expect(page.get_by_text("It was retried, and is still rejected.")).to_have_count(20)
