"""What Prefect adds to an ingest: a task for some batches, and a page to sum it up."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.testing.utilities import prefect_test_harness
from sqlalchemy import Engine

import flows.ingest
import flows.intake
from tests.builders import a_folder, png


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
