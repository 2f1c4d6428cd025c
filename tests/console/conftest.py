"""A filled home, its console and its schedules as processes, and a browser."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from embedding.training.trainer import options_of
from flows.config.settings import Settings
from flows.datasets.test_sets import EvaluationChoice, choose_test_set
from flows.evaluation.evaluate import evaluate
from flows.evaluation.promotion_gate import promote
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.resources.comparison import record_comparison
from flows.resources.connections import open_deps
from flows.training.finetune import train_candidate
from flows.training.spec import TrainingSpec
from tests.support import prefect_database
from tests.support.builders import a_folder, a_manifest, encoded, noise, png
from tests.support.processes import a_free_port, environment_with_flows, homes, wait_until
from tests.support.signed_in import signed_in
from tests.support.tiny_clip import write_tiny_clip
from tests.support.tools import tool

SHOTS = Path(__file__).parent.parent.parent / ".artifacts" / "console"
"""Screenshots of the pages, one for each test."""

PATIENCE_S = 90
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
)
COLOURS = ("red", "green", "blue")


@dataclass
class Running:
    """A running console and its data directory."""

    home: Path
    folder: Path
    """Folder of the sources: `shop`, with three images and a broken one, and `words.jsonl`."""

    model: Path
    port: int = field(default_factory=a_free_port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def settings(self) -> Settings:
        return Settings(home=self.home, model=str(self.model), decode_workers=0)

    def client(self) -> AbstractContextManager[httpx.Client]:
        """A client with a session of its own."""
        return signed_in(self.url, self.home)

    def environment(self) -> dict[str, str]:
        return (
            os.environ
            | environment_with_flows(self.home, self.model)
            | {"SIGHTLINE_CONSOLE__PORT": str(self.port)}
        )


def fill(running: Running) -> None:
    """Ingest twice, with some rejects, evaluate, and compare the stores."""
    settings = running.settings
    pictures = {f"{colour}.png": png(colour) for colour in COLOURS}
    captions = {f"{colour}.txt": f"a {colour} square" for colour in COLOURS}
    shop = a_folder(running.folder / "shop", {**pictures, **captions, "broken.png": b"no picture"})
    words = a_manifest(
        running.folder / "words.jsonl",
        [{"key": "a", "text": "a poem about the sea", "kind": "poem"}, {"key": "b", "image": "lost.png"}],
    )
    with open_deps(settings) as deps:
        for source in (shop, words):
            ingest_source(deps, settings, Request(source))
        everything = choose_test_set(deps, settings, EvaluationChoice(), ())
        evaluate(deps, settings, (), everything, load=lambda *_: deps.encoder)
        record_comparison(deps, settings)


def fill_workshop(running: Running) -> None:
    """Ingest enough to train on, and much that is rejected; train a candidate that the gate rejects."""
    settings = running.settings.model_copy(update={"max_reject_share": 1.0})
    folder = running.folder
    scenes = range(24)
    a_folder(folder / "set", {f"{n}.png": encoded(noise((40 + n, 32)), "PNG") for n in scenes})
    a_folder(folder / "stock", {"twin.png": png("red"), "other.png": png("blue"), "torn.png": b"no picture"})
    sources = {
        "set/set.jsonl": [
            {"key": str(n), "image": f"{n}.png", "texts": [f"scene {n}", f"view {n}"]} for n in scenes
        ],
        "stock/stock.jsonl": [
            {"key": "first", "image": "first.png", "text": "<b>not bold</b>"},
            {"key": "second", "image": "second.png"},
            {"key": "twin", "image": "twin.png", "text": "one of two"},
            {"key": "twin", "image": "other.png", "text": "the other"},
            {"key": "torn", "image": "torn.png"},
        ],
        "bulk/bulk.jsonl": [{"text": f"row {n}"} for n in range(30)],
    }
    with open_deps(settings) as deps:
        for name, rows in sources.items():
            ingest_source(deps, settings, Request(a_manifest(folder / name, rows)))
        order = TrainingSpec(options_of("head", epochs=1, batch_size=16))
        models = str(running.model), train_candidate(deps, settings, order).name
        held_out = choose_test_set(deps, settings, EvaluationChoice(held_out=True), models)
        evaluate(deps, settings, models, held_out)
        promote(deps, settings, models[1])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests of the workshop last: it changes what others count."""
    items.sort(key=lambda item: "workshop" in getattr(item, "fixturenames", ()))


@contextmanager
def process(running: Running, *command: str) -> Iterator[Callable[[str], None]]:
    """Run a command until this ends; yield a function that waits for words in its output.

    What it prints is in the folder, under its first word.
    """
    log = running.folder / f"{command[0]}.log"
    with log.open("wb") as file:
        started = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *command],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=running.environment(),
        )

    def wait_for(words: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while words not in log.read_text():
            assert started.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)

    try:
        yield wait_for
    finally:
        started.terminate()
        started.wait(60)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").is_success
    except httpx.TransportError:
        return False


@contextmanager
def at_work(running: Running) -> Iterator[Running]:
    """Run the console, and the flows that it starts, until this ends."""
    with (
        process(running, "serve", "--port", str(a_free_port())) as flows_say,
        process(running, "console") as console_says,
    ):
        flows_say("watch them")
        console_says("The console is at")
        wait_until(lambda: answers(running.url), patience_s=PATIENCE_S)
        yield running


@pytest.fixture(scope="package")
def filled(tmp_path_factory: pytest.TempPathFactory, prefect_tables: Path) -> Iterator[Running]:
    """A filled data directory, its console, and the flows that the console starts."""
    folder = tmp_path_factory.mktemp("console")
    with homes() as home_at:
        running = Running(home_at(folder / "home"), folder, write_tiny_clip(folder / "tiny"))
        prefect_database.give(running.home, prefect_tables)
        fill(running)
        with at_work(running):
            yield running


@pytest.fixture(scope="package")
def running(filled: Running) -> Running:
    """The console with few records, of which tests know the counts."""
    return filled


@pytest.fixture(scope="package")
def workshop(filled: Running) -> Running:
    """The same console once all others are done with it, with much to train on and many rejects."""
    fill_workshop(filled)
    return filled


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_S * 1000)  # a flow starts as a process, on a machine that is busy
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=tool("chromium"), args=[*FLAGS])
        yield browser
        browser.close()


def sign_in(context: BrowserContext, running: Running) -> None:
    """Sign a browser in."""
    with running.client() as client:
        cookies = [
            {"name": name, "value": value, "url": running.url} for name, value in client.cookies.items()
        ]
    assert cookies
    context.add_cookies(cookies)


@pytest.fixture(scope="module")
def context(browser: Browser, running: Running) -> Iterator[BrowserContext]:
    """A returning browser: it keeps the session and the scripts, not the theme."""
    context = browser.new_context(base_url=running.url, viewport={"width": 1280, "height": 900})
    sign_in(context, running)
    yield context
    context.close()


def reload(page: Page) -> None:
    """Load a page again, and wait until it answers: it is shown before, and loses what is clicked."""
    page.reload()
    page.wait_for_function("window.did_handshake")


@pytest.fixture
def page(context: BrowserContext, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of the console; the test fails if the browser logs an error or a warning."""
    page = context.new_page()
    page.set_default_timeout(PATIENCE_S * 1000)
    expect.set_options(timeout=PATIENCE_S * 1000)
    complaints: list[str] = []
    page.on(
        "console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda failed: complaints.append(f"{failed.url}: {failed.failure}"))
    yield page
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{request.node.name}.png", full_page=True)
    page.close()
    context.clear_cookies(name="theme")
    assert complaints == []
