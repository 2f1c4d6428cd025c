"""Our own servers, killed with SIGKILL in the middle of a run, which goes on."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import httpx
import pytest
from sqlalchemy import Engine, event

from flows.config.settings import Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.resources.comparison import reconcile
from flows.resources.connections import Deps, open_stores
from storage.embedded.postgres.server import find_postgres
from storage.embedded.qdrant.process.client import find_index
from tests.support.builders import a_folder, png
from tests.support.fakes import ColourEncoder
from tests.support.processes import homes

pytestmark = pytest.mark.system

SEEDS = 1
MORE_SEEDS = 30
STEPS = 90
"""Fewer than an ingest has statements and requests."""

GOOD = {f"{n}.png": png("red", (16, 16 + n)) for n in range(8)}
FIND = {"postgres": find_postgres, "qdrant": find_index}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with homes() as home_at:
        yield home_at(tmp_path_factory.mktemp("home"))


@contextmanager
def after_steps(engine: Engine, many: int, act: Callable[[], None]) -> Iterator[list[int]]:
    """Call `act` at the start of one of the statements and requests that this process sends to the stores."""
    done = [0]

    def step(*_: object) -> None:
        done[0] += 1
        if done[0] == many:
            act()

    def handle(self: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        step()
        return real(self, request)

    with pytest.MonkeyPatch.context() as patch:
        real = httpx.HTTPTransport.handle_request
        patch.setattr(httpx.HTTPTransport, "handle_request", handle)
        event.listen(engine, "before_cursor_execute", step)
        yield done


def test_an_ingest_has_more_steps_than_are_tried(home: Path, tmp_path: Path):
    folder = a_folder(tmp_path / "steps", GOOD)
    settings = Settings(home=home, batch_size=2)
    with open_stores(settings) as stores, after_steps(stores.engine, 0, lambda: None) as done:
        deps = Deps(stores.engine, stores.sessions, stores.vectors, stores.blobs, ColourEncoder())
        ingest_source(deps, settings, Request(folder))

    assert done[0] > STEPS


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("server", FIND)
def test_a_server_that_is_killed_is_started_again_and_the_run_goes_on(
    home: Path, tmp_path: Path, server: str, seed: int
):
    folder = a_folder(tmp_path / f"{server} {seed}", GOOD | {"bad.png": b"no picture"})
    settings = Settings(home=home, batch_size=2, retry_for_s=30)
    killed = []

    def kill() -> None:
        pid = FIND[server](home).pid
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    with open_stores(settings) as stores:
        deps = Deps(stores.engine, stores.sessions, stores.vectors, stores.blobs, ColourEncoder())
        with after_steps(stores.engine, Random(f"{server} {seed}").randrange(1, STEPS), kill):
            report = ingest_source(deps, settings, Request(folder))

    assert len(killed) == 1
    assert (report.embedded, report.rejected, report.outcome) == (8, 1, "completed")
    with open_stores(settings) as stores:
        assert reconcile(stores).work == 0


@pytest.mark.full
@pytest.mark.parametrize("seed", range(SEEDS, MORE_SEEDS))
@pytest.mark.parametrize("server", FIND)
def test_a_server_may_be_killed_at_any_moment(home: Path, tmp_path: Path, server: str, seed: int):
    test_a_server_that_is_killed_is_started_again_and_the_run_goes_on(home, tmp_path, server, seed)
