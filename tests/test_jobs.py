"""A job without a Prefect server runs in the command's own process, and on record all the same."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine, select

import flows.intake
from flows import jobs
from flows.cli.parts import PrefectUnavailable, run_under_prefect
from flows.ending import Terminated, raising_on_sigterm
from flows.intake import Request
from flows.settings import Settings, has_prefect_settings
from storage.schema import RunRow
from tests.builders import a_folder, png

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
        "HOME": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }

    command = [sys.executable, "-c", PROBE, "ingest", str(folder)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (
        0,
        "The run is on record: see the page Runs of `sightline console`.\n",
    )
    assert last_run(engine) == ("ingest", "completed", None, None)


def test_sigterm_ends_a_run_on_record(
    engine: Engine, home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(flows.intake, "embed", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    settings = Settings(home=home, database_url=engine.url.render_as_string(hide_password=False))

    with pytest.raises(Terminated), raising_on_sigterm():
        jobs.ingest(settings, Request(folder), folder)

    assert last_run(engine)[:2] == ("ingest", "failed")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


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
