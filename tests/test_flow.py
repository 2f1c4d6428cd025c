"""What Prefect adds to an ingest: a task for some batches, retries for stores alone, a page to sum it up."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.testing.utilities import prefect_test_harness
from qdrant_client.http.exceptions import ResponseHandlingException
from sqlalchemy import Engine

import flows.ingest
import flows.intake
from storage.embedded.qdrant.client import find_index, index_client
from tests.builders import a_folder, png

STEPS = ("look", "keep", "write")
"""Those steps of a batch that ask a store."""


@pytest.fixture(scope="module", autouse=True)
def prefect() -> Iterator[None]:
    with prefect_test_harness():
        yield


@pytest.fixture
def shop(engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path) -> Path:
    """A source of three batches, and a home of its own for everything but Postgres."""
    monkeypatch.setenv("SIGHTLINE_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("SIGHTLINE_HOME", str(home))
    monkeypatch.setenv("SIGHTLINE_BATCH_SIZE", "2")
    return a_folder(tmp_path / "my shop", {f"{n}.png": png("red", (32, 32 + n)) for n in range(5)})


def failing_once(step: str, error: Exception, calls: list[int]) -> Callable[..., Any]:
    """Return the step of that name as it is, but that its first call ends with `error`."""
    real = getattr(flows.intake, step)

    def work(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise error
        return real(*args)

    return work


def test_a_run_leaves_one_task_for_some_seconds_and_one_page_that_sums_it_up(shop: Path):
    report = flows.ingest.ingest(shop)

    with get_client(sync_client=True) as client:
        [artifact] = client.read_artifacts()
        [run] = client.read_flow_runs()
        tasks = client.read_task_runs()
    assert report.embedded == 5
    assert artifact.key == "ingest-my-shop"
    assert "| embedded | 5 |" in str(artifact.data)
    assert run.parameters["location"] == str(shop)
    assert len(tasks) == 1  # of three batches


@pytest.mark.parametrize(
    "step", [pytest.param(step, marks=() if step == "write" else pytest.mark.full) for step in STEPS]
)
def test_a_store_that_does_not_answer_is_asked_again(step: str, shop: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    gone = ResponseHandlingException(ConnectionError("refused"))
    monkeypatch.setattr(flows.intake, step, failing_once(step, gone, calls))

    report = flows.ingest.ingest(shop)

    assert (report.embedded, len(calls)) == (5, 4)


@pytest.mark.full  # tests/faults/test_servers.py kills both servers
def test_an_index_that_is_killed_during_an_ingest_is_started_again_and_holds_everything(
    shop: Path, home: Path, monkeypatch: pytest.MonkeyPatch
):
    killed: list[int] = []
    real = flows.intake.write

    def work(*args: Any) -> Any:
        if (owner := find_index(home)) is not None:
            os.kill(owner.pid, signal.SIGKILL)
            killed.append(owner.pid)
        return real(*args)

    monkeypatch.setattr(flows.intake, "write", work)

    report = flows.ingest.ingest(shop)

    assert len(set(killed)) >= 3
    assert report.embedded == 5
    with index_client(home, timeout_s=30) as client:
        assert client.count("items").count == 5


@pytest.mark.parametrize("step", [*(pytest.param(step, marks=pytest.mark.full) for step in STEPS), "embed"])
def test_a_bug_is_not_tried_again_and_ends_the_run(step: str, shop: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    monkeypatch.setattr(flows.intake, step, failing_once(step, ValueError("a bug"), calls))

    with pytest.raises(ValueError, match="a bug"):
        flows.ingest.ingest(shop)

    assert calls == [1]
