"""A job without a Prefect server runs in the command's own process, and on record all the same."""

import inspect
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from qdrant_client.http.exceptions import ResponseHandlingException
from sqlalchemy import Engine, select

import flows.ingestion.pipeline
from flows.cli.options import PrefectUnavailable, run_under_prefect
from flows.config.prefect_env import has_prefect_settings
from flows.config.settings import Settings, load_settings
from flows.orchestration import flows as prefect_flows
from flows.orchestration.jobs import ingest as jobs
from flows.tracking.signals import Terminated, raising_on_sigterm
from flows.training.spec import training_spec
from storage.embedded.qdrant.process.client import find_index, index_client
from storage.postgres.schema import RunRow
from tests.support.builders import a_folder, png
from tests.support.tiny_clip import write_tiny_clip

pytestmark = pytest.mark.services

PROBE = (
    "import sys; from flows.cli import main; main(sys.argv[1:], standalone_mode=False); "
    "sys.exit('prefect' in sys.modules)"
)
NAMED = ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH", "PREFECT_HOME")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return a_folder(tmp_path / "shop", {"red.png": png("red"), "blue.png": png("blue")})


def last_run(engine: Engine) -> tuple[str, str, str | None, object]:
    with engine.connect() as connection:
        columns = RunRow.flow, RunRow.outcome, RunRow.error, RunRow.prefect_run_id
        found = connection.execute(select(*columns).order_by(RunRow.started.desc())).first()
    assert found is not None
    return tuple(found)


def test_an_ingest_needs_no_prefect_and_says_where_its_run_is_on_record(
    engine: Engine, home: Path, folder: Path, tmp_path: Path
):
    environment = {name: value for name, value in os.environ.items() if name not in NAMED} | {
        "SIGHTLINE_DATABASE_URL": engine.url.render_as_string(hide_password=False),
        "SIGHTLINE_HOME": str(home),
        "SIGHTLINE_MODEL": str(write_tiny_clip(tmp_path / "tiny clip")),
        "SIGHTLINE_DECODE_WORKERS": "1",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }

    command = [sys.executable, "-c", PROBE, "ingest", str(folder)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (
        0,
        "The run is on record: see the page Runs of `sightline console`.\n",
    )
    assert last_run(engine) == ("ingest", "completed", None, None)


STEPS = ("start_decoding", "store_records", "write_points")
"""Those steps of a batch that ask a store."""


@pytest.fixture
def shop(engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path) -> Path:
    """A source of three batches, and a home of its own for everything but Postgres."""
    monkeypatch.setenv("SIGHTLINE_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("SIGHTLINE_HOME", str(home))
    monkeypatch.setenv("SIGHTLINE_BATCH_SIZE", "2")
    return a_folder(tmp_path / "my shop", {f"{n}.png": png("red", (32, 32 + n)) for n in range(5)})


def failing_once(step: str, error: Exception, calls: list[int]) -> Callable[..., Any]:
    """Return the step of that name as it is, but that its first call ends with `error`."""
    real = getattr(flows.ingestion.pipeline, step)

    def work(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise error
        return real(*args)

    return work


@pytest.mark.full  # tests/faults/test_proxy.py breaks the connections
@pytest.mark.parametrize("step", STEPS)
def test_a_store_that_does_not_answer_is_asked_again(step: str, shop: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    gone = ResponseHandlingException(ConnectionError("refused"))
    monkeypatch.setattr(flows.ingestion.pipeline, step, failing_once(step, gone, calls))

    report = jobs.ingest(load_settings(), location=shop)

    assert (report.embedded, len(calls)) == (5, 4)


@pytest.mark.full  # tests/faults/test_servers.py kills both servers
def test_an_index_that_is_killed_during_an_ingest_is_started_again_and_holds_everything(
    shop: Path, home: Path, monkeypatch: pytest.MonkeyPatch
):
    killed: list[int] = []
    real = flows.ingestion.pipeline.write_points

    def work(*args: Any) -> Any:
        if (owner := find_index(home)) is not None:
            os.kill(owner.pid, signal.SIGKILL)
            killed.append(owner.pid)
        return real(*args)

    monkeypatch.setattr(flows.ingestion.pipeline, "write_points", work)

    report = jobs.ingest(load_settings(), location=shop)

    assert len(set(killed)) >= 3
    assert report.embedded == 5
    with index_client(home, timeout_s=30) as client:
        assert client.count("items").count == 5


@pytest.mark.parametrize(
    "step", [*(pytest.param(step, marks=pytest.mark.full) for step in STEPS), "encode_batch"]
)
def test_a_bug_is_not_tried_again_and_ends_the_run(step: str, shop: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    monkeypatch.setattr(flows.ingestion.pipeline, step, failing_once(step, ValueError("a bug"), calls))

    with pytest.raises(ValueError, match="a bug"):
        jobs.ingest(load_settings(), location=shop)

    assert calls == [1]


def test_sigterm_ends_a_run_on_record(
    engine: Engine, home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        flows.ingestion.pipeline, "encode_batch", lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    )
    settings = Settings(home=home, database_url=engine.url.render_as_string(hide_password=False))

    with pytest.raises(Terminated), raising_on_sigterm():
        jobs.ingest(settings, location=folder)

    assert last_run(engine)[:2] == ("ingest", "cancelled")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_prefect_server_that_is_not_there_is_named_with_the_remedy():
    url = "http://127.0.0.1:9/api"
    with (
        temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}),
        pytest.raises(PrefectUnavailable, match=f"at {url} does not answer.*unset PREFECT_API_URL"),
        run_under_prefect(),
    ):
        prefect_flows.rollback()


def test_a_bug_is_not_taken_for_an_unavailable_prefect_server():
    with pytest.raises(RuntimeError, match="a bug"), run_under_prefect():
        raise RuntimeError("a bug")


def test_a_prefect_server_that_ends_meanwhile_is_named_with_where_the_run_is_on_record():
    with pytest.raises(PrefectUnavailable, match="run `sightline status`"), run_under_prefect():
        raise httpx.ConnectError("Connection refused")


@pytest.mark.parametrize(
    ("variables", "files"),
    [
        ({"PREFECT_API_URL": "http://127.0.0.1:4200/api"}, {}),
        ({"PREFECT_PROFILE": "work"}, {}),
        ({}, {".prefect/profiles.toml": ""}),
        ({}, {"prefect.toml": "[api]\nurl = 'http://127.0.0.1:4200/api'\n"}),
        ({}, {"pyproject.toml": "[tool.prefect.api]\nurl = 'http://127.0.0.1:4200/api'\n"}),
        ({}, {".env": "PREFECT_API_URL=http://127.0.0.1:4200/api\n"}),
    ],
)
def test_prefect_is_consulted_wherever_a_server_may_be_configured(
    variables: dict[str, str], files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in NAMED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'shop'\n")
    assert not has_prefect_settings()

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)

    assert has_prefect_settings()


def test_the_flow_takes_the_options_of_a_training_with_their_defaults():
    def defaults(function: Callable[..., Any]) -> dict[str, object]:
        return {name: one.default for name, one in inspect.signature(function).parameters.items()}

    assert defaults(prefect_flows.finetune.fn) == defaults(training_spec) | {"promote": True}
