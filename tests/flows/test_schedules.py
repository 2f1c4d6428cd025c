"""Flows on schedules: a real `sightline serve` and Prefect server, and what each flow leaves on record."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from click.testing import CliRunner
from PIL import Image
from prefect.logging import disable_run_logger
from prefect.states import State
from pydantic import SecretStr
from qdrant_client import QdrantClient
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.orm import Session

from flows.cli import main
from flows.config.settings import BadSettings, PromotionGate, Qdrant, Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.maintenance.backup_files import BadBackup
from flows.maintenance.delete import delete_items
from flows.maintenance.purge import TooManyOrphans
from flows.maintenance.repair import repair
from flows.orchestration import flows
from flows.orchestration.jobs import ingest as ingest_jobs
from flows.orchestration.jobs import models as model_jobs
from flows.orchestration.jobs import stores as store_jobs
from flows.orchestration.prefect_client import DeployedFlow, NothingServes, open_prefect
from flows.orchestration.server_access import password_file, password_of
from flows.resources.connections import open_deps, open_stores
from storage import qdrant
from storage.embedded.postgres.server import postgres_url
from storage.embedded.qdrant.process.discovery import find
from storage.postgres import rejects, runs
from storage.postgres.catalog import Selection
from storage.postgres.locks import Busy, exclusive_lock, flow_lock, source_lock
from storage.postgres.schema import EvaluationRow
from storage.records import item_id
from tests.conftest import emptied
from tests.support import prefect_database
from tests.support.builders import a_folder, encoded, png
from tests.support.processes import (
    ONCE_A_YEAR,
    a_free_port,
    environment_with_flows,
    homes,
    is_gone,
    wait_until,
)
from tests.support.tiny_clip import write_tiny_clip

pytestmark = pytest.mark.system

README = (Path(__file__).parents[2] / "flows" / "README.md").read_text()
PATIENCE_S = 90
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def wait_long(condition: Callable[[], bool]) -> None:
    """A run takes a process, Prefect and a model to start: seconds, on a busy machine many."""
    wait_until(condition, patience_s=PATIENCE_S)


@dataclass
class Served:
    """A home whose flows are served; its Prefect is asked over plain HTTP."""

    home: Path
    model: Path
    port: int = field(default_factory=a_free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> Settings:
        return Settings(home=self.home, model=str(self.model), decode_workers=0)

    def environment(self) -> dict[str, str]:
        return environment_with_flows(self.home, self.model) | {
            "SIGHTLINE_SCHEDULES__EVALUATE": "off",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "3",  # or a tick may pass before it is planned
        }

    @property
    def auth(self) -> tuple[str, str]:
        """The user and the password that its Prefect asks for."""
        user, _, password = password_of(self.home).partition(":")
        return user, password

    def start(self) -> str:
        """Serve, and return what that prints until it is at work."""
        command = [sys.executable, "-m", "flows.cli", "serve", "--port", str(self.port)]
        log = self.home.parent / "serve.log"
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        while "ask for a password" not in log.read_text():
            assert self.process.poll() is None, log.read_text()
            time.sleep(0.1)
        return log.read_text()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the answer; a server whose SQLite file is locked says 503 and has done nothing."""

        def is_answered() -> bool:
            nonlocal answer
            answer = httpx.post(f"http://127.0.0.1:{self.port}/api{path}", json=body, auth=self.auth)
            return answer.status_code != 503

        answer: httpx.Response
        wait_long(is_answered)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def get(self, path: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api{path}"
        return httpx.get(url, auth=self.auth).raise_for_status().json()

    def deployment(self, flow: str) -> dict[str, Any]:
        return self.get(f"/deployments/name/{flow}/scheduled")

    def trigger(self, flow: str) -> str:
        """Start a flow by hand, and return its run's id."""
        return str(self.post(f"/deployments/{self.deployment(flow)['id']}/create_flow_run", {})["id"])

    def pause(self, flow: str, schedule: str) -> None:
        """Pause one schedule of a flow, as Prefect's own pages do."""
        path = f"/deployments/{self.deployment(flow)['id']}/schedules/{schedule}"
        url = f"http://127.0.0.1:{self.port}/api{path}"
        httpx.patch(url, json={"active": False}, auth=self.auth).raise_for_status()

    def state(self, run: str) -> dict[str, Any]:
        return self.get(f"/flow_runs/{run}")["state"]

    def end_of(self, run: str) -> dict[str, Any]:
        wait_long(lambda: self.state(run)["type"] in ENDED)
        return self.state(run)

    def events(self, run: str) -> list[dict[str, Any]]:
        """What was told of a run's failure."""
        wanted = {"event": {"name": ["sightline.run.failed"]}, "occurred": {"since": a_day_ago()}}
        found = self.post("/events/filter", {"filter": wanted})["events"]
        return [one for one in found if f"prefect.flow-run.{run}" in json.dumps(one["related"])]

    def processes(self, holding: str) -> list[int]:
        """The processes below this one that have these words in their command."""
        assert self.process is not None
        return [pid for pid in descendants(self.process.pid) if holding in command_of(pid)]

    def row(self, engine: Engine, run: str) -> list[tuple[str, str | None, str, str | None]]:
        """What `runs` says of a Prefect run."""
        rows = "select flow, source, outcome, error from runs where prefect_run_id = :run order by started"
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(rows), {"run": run})]


def status() -> dict[str, Any]:
    return json.loads(CliRunner().invoke(main, ["status", "--json"]).stdout)


def a_day_ago() -> str:
    return (datetime.now(UTC) - timedelta(days=1)).isoformat()


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def descendants(pid: int) -> list[int]:
    children = [
        int(child)
        for tasks in Path(f"/proc/{pid}/task").glob("*/children")
        for child in tasks.read_text().split()
    ]
    return [*children, *(below for child in children for below in descendants(child))]


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("tiny clip"))


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path, prefect_tables: Path
) -> Iterator[Served]:
    """A home with two sources, whose flows are served for as long as these tests run."""
    folder = tmp_path_factory.mktemp("served")
    with homes() as home_at, pytest.MonkeyPatch.context() as patch:
        served = Served(home_at(folder / "home"), tiny_clip)
        prefect_database.give(served.home, prefect_tables)
        for name, value in served.environment().items():
            patch.setenv(name, value)
        with open_deps(served.settings) as deps:
            for name in ("apples", "leaves"):
                source = a_folder(folder / name, {f"{name}.png": png(), f"{name}.txt": name})
                ingest_source(deps, served.settings, Request(source))
        served.start()
        yield served
        served.stop()


@pytest.fixture(scope="module")
def postgres(served: Served) -> Iterator[Engine]:
    engine = create_engine(postgres_url(served.home))
    yield engine
    engine.dispose()


@contextmanager
def items_locked(engine: Engine) -> Iterator[None]:
    """Whoever wants to look at the items waits until this ends."""
    with engine.begin() as connection:
        connection.execute(text("lock table items in access exclusive mode"))
        yield


def is_at_work(served: Served, engine: Engine, run: str) -> bool:
    return [row[2] for row in served.row(engine, run)] == ["running"]


@pytest.mark.full  # tests/cli/test_supervisor.py has a schedule start an ingest of a known source
def test_a_schedule_starts_an_ingest_which_takes_in_what_is_new_in_a_known_source(
    served: Served, postgres: Engine
):
    a_folder(served.home.parent / "apples", {"new.png": png("green"), "new.txt": "a new one"})
    soon = (datetime.now(UTC) + timedelta(seconds=10)).isoformat()
    schedule = {"interval": 120, "anchor_date": soon, "timezone": "UTC"}  # a busy server plans a minute late
    ingest = served.deployment("ingest")["id"]

    [made] = served.post(f"/deployments/{ingest}/schedules", [{"schedule": schedule, "active": True}])

    def started() -> list[str]:
        wanted = {
            "deployments": {"id": {"any_": [ingest]}},
            "flow_runs": {"state": {"type": {"any_": ENDED}}},
        }
        return [run["id"] for run in served.post("/flow_runs/filter", wanted)]

    wait_until(lambda: started() != [], patience_s=2 * PATIENCE_S)
    served.pause("ingest", made["id"])
    [run] = started()
    assert served.state(run)["type"] == "COMPLETED"
    assert [row[:3] for row in served.row(postgres, run)] == [
        ("ingest", None, "completed"),
        ("ingest", "apples", "completed"),
        ("ingest", "leaves", "completed"),
    ]
    assert status()["items"]["items"] == 3


@pytest.mark.full  # a killed run sends the same event
def test_a_failed_run_is_in_the_status_and_sends_an_event_on_which_an_automation_acts(
    served: Served, postgres: Engine
):
    [trigger] = [
        json.loads(code)
        for code in re.findall(r"```json\n(.*?)```", README, re.DOTALL)
        if "sightline.run.failed" in code
    ]
    purge = served.deployment("purge")["id"]
    action = {"type": "run-deployment", "source": "selected", "deployment_id": purge, "parameters": {}}
    served.post("/automations/", {"name": "clear up", "trigger": trigger, "actions": [action]})
    gone = served.home.parent / "leaves"
    gone.rename(gone.with_name("elsewhere"))

    run = served.trigger("ingest")

    assert served.end_of(run)["type"] == "FAILED"
    gone.with_name("elsewhere").rename(gone)
    [whole, apples] = served.row(postgres, run)
    assert apples[:3] == ("ingest", "apples", "completed")
    assert whole[2] == "failed"
    assert "1 of 2 sources failed: leaves" in str(whole[3])
    [listed] = [one for one in status()["failed"] if one["flow"] == "ingest"]
    assert listed["error"] == whole[3]
    wait_long(lambda: served.events(run) != [])
    [event] = served.events(run)
    assert event["resource"]["prefect.resource.id"] == "sightline.flow.ingest"
    assert event["payload"]["outcome"] == "failed"
    assert "leaves" in event["payload"]["why"]
    chosen = {"deployments": {"id": {"any_": [purge]}}, "flow_runs": {"state": {"type": {"any_": ENDED}}}}
    wait_long(lambda: served.post("/flow_runs/filter", chosen) != [])
    [purged] = served.post("/flow_runs/filter", chosen)
    assert served.row(postgres, purged["id"]) == [("purge", None, "completed", None)]


@pytest.mark.full  # the console's tests see a run that is cancelled
def test_a_run_whose_process_is_killed_is_closed_and_told_of_and_the_next_one_runs(
    served: Served, postgres: Engine
):
    with items_locked(postgres):
        run = served.trigger("reconcile")
        wait_long(lambda: is_at_work(served, postgres, run))
        [pid] = served.processes("prefect.engine")

        os.kill(pid, signal.SIGKILL)

        assert served.end_of(run)["type"] == "CRASHED"
        wait_long(lambda: not is_at_work(served, postgres, run))
    [row] = served.row(postgres, run)
    assert row[:3] == ("reconcile", None, "crashed")
    assert "-9" in str(row[3])
    wait_long(lambda: served.events(run) != [])
    assert served.events(run)[0]["payload"]["outcome"] == "crashed"
    assert served.end_of(served.trigger("reconcile"))["type"] == "COMPLETED"
    assert [one for one in status()["failed"] if one["flow"] == "reconcile"] == []


@pytest.mark.full  # Prefect's own limit
def test_of_two_runs_that_are_started_at_once_one_runs(served: Served, postgres: Engine):
    with items_locked(postgres):
        first = served.trigger("reconcile")
        wait_long(lambda: is_at_work(served, postgres, first))

        second = served.trigger("reconcile")

        assert served.end_of(second)["type"] == "CANCELLED"
        assert is_at_work(served, postgres, first)
    assert served.end_of(first)["type"] == "COMPLETED"
    assert served.row(postgres, second) == []
    assert served.events(second) == []


@pytest.mark.full  # tests/cli/test_supervisor.py ends by a signal as well
def test_a_signal_ends_everything_and_what_was_paused_stays_paused(served: Served, postgres: Engine):
    [reconcile] = served.deployment("reconcile")["schedules"]
    served.pause("reconcile", reconcile["id"])
    served.post(f"/deployments/{served.deployment('purge')['id']}/pause_deployment", {})
    before = {flow: served.deployment(flow)["schedules"] for flow in ("ingest", "reconcile", "purge")}
    assert served.process is not None
    with items_locked(postgres):
        run = served.trigger("reconcile")
        wait_long(lambda: is_at_work(served, postgres, run))
        below = descendants(served.process.pid)
        assert len(below) >= 2

        assert served.stop() == 0

        wait_long(lambda: all(map(is_gone, below)))
        assert not is_at_work(served, postgres, run)
    printed = served.start()

    assert served.state(run)["type"] == "CANCELLED"
    assert re.search(r"purge +30 4 1 1 \* +paused", printed)
    assert served.deployment("purge")["paused"] is True
    after = {flow: served.deployment(flow)["schedules"] for flow in ("ingest", "reconcile", "purge")}
    assert {flow: kept(found) for flow, found in after.items()} == {
        flow: kept(found) for flow, found in before.items()
    }
    assert [one["active"] for one in after["reconcile"]] == [False]


def kept(found: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """What must not change of schedules."""
    return sorted((json.dumps(one["schedule"], sort_keys=True), one["active"]) for one in found)


@pytest.fixture
def empty(
    engine: Engine, embedded: QdrantClient, index_home: Path, tiny_clip: Path, home: Path
) -> Iterator[Settings]:
    """A home with nothing in it, on the tests' Postgres and their index."""
    access = find(index_home)
    assert access is not None
    home.mkdir(mode=0o711)  # the account that runs root's Postgres passes to that of a proof
    settings = Settings(
        home=home,
        database_url=SecretStr(engine.url.render_as_string(hide_password=False)),
        qdrant=Qdrant(url=access.url, api_key=SecretStr(access.key)),
        model=str(tiny_clip),
        decode_workers=0,
    )
    for _ in emptied(embedded):
        yield settings


@pytest.fixture
def shop(empty: Settings, tmp_path: Path) -> Settings:
    """A home with a captioned source."""
    files: dict[str, bytes | str] = {"a.png": png(), "a.txt": "red", "b.png": png("blue"), "b.txt": "blue"}
    with open_deps(empty) as deps:
        ingest_source(deps, empty, Request(a_folder(tmp_path / "shop", files)))
    return empty


def last_run(engine: Engine) -> runs.Run:
    with Session(engine) as session:
        return runs.recent_runs(session, 1)[0]


def test_an_ingest_asks_for_what_was_asked_for_last(shop: Settings, engine: Engine, tmp_path: Path):
    with open_deps(shop) as deps:
        asked = Request(tmp_path / "shop", "shop", ("de",), limit=1)
        ingest_source(deps, shop, asked)

    counts = ingest_jobs.ingest(shop)

    assert (counts["sources"], counts["read"]) == (1, 1)
    with Session(engine) as session:
        [known] = runs.known_sources(session)
    assert known.options == {"langs": ["de"], "limit": 1}


def test_a_source_of_which_nothing_is_left_is_not_read_again(shop: Settings):
    with open_deps(shop) as deps:
        delete_items(deps, Selection((), "shop", {}), shop.home / "receipts", for_s=0)

    assert ingest_jobs.ingest(shop)["sources"] == 0


def test_a_source_that_another_run_writes_is_left_to_that(shop: Settings, engine: Engine):
    with source_lock(engine, "shop"):
        counts = ingest_jobs.ingest(shop)

    assert (counts["busy"], counts["failed"]) == (1, {})
    assert last_run(engine).outcome == "completed"


def test_an_evaluation_of_what_is_held_out_keeps_its_figures_on_record(
    shop: Settings, engine: Engine, tmp_path: Path
):
    more: dict[str, bytes | str] = {f"{n}.png": png("red", (16, 20 + n)) for n in range(12)}
    captions: dict[str, bytes | str] = {f"{n}.txt": "red" for n in range(12)}
    with open_deps(shop) as deps:
        ingest_source(deps, shop, Request(a_folder(tmp_path / "more", more | captions)))

    model_jobs.evaluate(shop)

    run = last_run(engine)
    assert (run.flow, run.outcome, run.counts["model"]) == ("evaluate", "completed", shop.model)
    assert run.counts["text_to_image"]["recall@10"] > 0
    with Session(engine) as session:
        kept = session.scalars(select(EvaluationRow)).all()
    assert {(row.dataset, row.collection is not None) for row in kept} == {("held-out", True)}
    assert 0 < kept[0].queries < 14


def test_where_there_is_nothing_to_evaluate_yet_that_is_no_failure(empty: Settings, engine: Engine):
    assert "nothing has been ingested yet" in model_jobs.evaluate(empty)["nothing"]
    assert last_run(engine).outcome == "completed"


def test_stores_that_differ_fail_a_comparison_until_they_are_mended(shop: Settings, engine: Engine):
    with open_deps(shop) as deps:
        deps.vectors.delete("items", [str(item_id("shop", "a.png"))])

        with pytest.raises(store_jobs.StoresDiffer, match="1 missing; repair them with: sightline reconcile"):
            store_jobs.reconcile(shop)

        with Session(engine) as session:
            [failed] = runs.failed_runs(session)
        assert (failed.flow, failed.outcome, failed.counts) == ("reconcile", "failed", {"missing": 1})
        assert "1 missing" in str(failed.error)
        repair(deps, shop, max_delete=0.05, yes=False)
    store_jobs.reconcile(shop)
    with Session(engine) as session:
        assert runs.failed_runs(session) == []


def test_a_backup_goes_where_the_settings_say(shop: Settings, engine: Engine, tmp_path: Path):
    with pytest.raises(BadSettings, match="SIGHTLINE_BACKUP_URL is not set"):
        store_jobs.backup(shop)

    target = tmp_path / "backups"
    counts = store_jobs.backup(shop.model_copy(update={"backup_url": str(target)}))

    assert Path(counts["location"]).parent == target
    run = last_run(engine)
    assert (run.flow, run.outcome, run.counts["items"]) == ("backup", "completed", 2)


def test_a_backup_is_proved_and_the_next_one_says_when(shop: Settings, engine: Engine, tmp_path: Path):
    kept = shop.model_copy(update={"backup_url": str(tmp_path / "backups")})
    assert store_jobs.backup(kept)["proved"] is None

    counts = store_jobs.prove(kept)

    run = last_run(engine)
    assert (run.flow, run.outcome, run.counts) == ("prove", "completed", counts)
    assert (counts["items"], counts["points"]) == (2, 2)
    assert store_jobs.backup(kept)["proved"] is not None


def test_a_backup_that_does_not_come_back_whole_fails_its_proof(
    shop: Settings, engine: Engine, tmp_path: Path
):
    kept = shop.model_copy(update={"backup_url": str(tmp_path / "backups")})
    with open_stores(shop) as stores:
        stores.vectors.delete("items", [stores.vectors.scroll("items", limit=1)[0][0].id])
    store_jobs.backup(kept)

    with pytest.raises(BadBackup, match=r"comes back as something else: .*1 missing"):
        store_jobs.prove(kept)

    assert last_run(engine).outcome == "failed"


def test_a_purge_that_would_remove_suspiciously_much_fails_and_is_on_record(shop: Settings, engine: Engine):
    with engine.begin() as connection:
        connection.execute(text("truncate items cascade"))

    with pytest.raises(TooManyOrphans):
        store_jobs.purge(shop)

    run = last_run(engine)
    assert (run.flow, run.outcome, run.counts["orphans"]) == ("purge", "failed", 2)


COLOURS = {"red": "f00", "green": "0f0", "blue": "00f", "yellow": "ff0", "black": "000", "white": "fff"}


@pytest.fixture
def learnable(empty: Settings, tmp_path: Path) -> Settings:
    """A home with captions that name colours, which a head can learn on top of a model of random weights."""
    files: dict[str, bytes | str] = {}
    for n in range(20):
        for name, colour in COLOURS.items():
            image = Image.new("RGB", (20 + n, 20), f"#{colour}")
            files |= {f"{name} {n}.png": encoded(image, "PNG"), f"{name} {n}.txt": f"{name} {n}"}
    with open_deps(empty) as deps:
        ingest_source(deps, empty, Request(a_folder(tmp_path / "colours", files)))
    return empty


def finetuned(settings: Settings) -> dict[str, Any]:
    done = model_jobs.finetune(settings, held_out=0.4, epochs=10, batch_size=16, learning_rate=0.03)
    assert isinstance(done, dict)
    return done


def searched(settings: Settings) -> str:
    """The name of the model that searches use."""
    with open_stores(settings) as stores:
        collection = qdrant.active_collection(stores.vectors)
    assert collection is not None
    return collection.model


def test_searches_move_to_a_candidate_that_is_promoted(learnable: Settings):
    done = finetuned(learnable)

    assert (done["promoted"], done["model"]) == (True, done["candidate"])
    assert searched(learnable) == done["candidate"]


def test_searches_stay_where_they_are_when_a_candidate_is_not_promoted(learnable: Settings):
    done = finetuned(learnable.model_copy(update={"gate": PromotionGate(margin=0.99)}))

    assert done == {"candidate": done["candidate"], "promoted": False}
    assert searched(learnable) == learnable.model


def test_a_promoted_candidate_that_cannot_be_moved_to_now_is_a_failure(learnable: Settings, engine: Engine):
    hasty = learnable.model_copy(update={"retry_for_s": 0})

    with (
        flow_lock(engine, "re-index"),
        pytest.raises(model_jobs.NotSwitched, match=r"then run: sightline reindex --model tiny"),
    ):
        finetuned(hasty)

    assert searched(learnable) == learnable.model


def test_that_another_is_at_work_is_no_failure_of_a_deployment(
    empty: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    def purge(_: Settings, run: UUID | None, **named: Any) -> dict[str, Any]:
        return store_jobs.purge(empty, run, **named)

    with exclusive_lock(engine), disable_run_logger():
        with pytest.raises(Busy):
            flows.run_job(purge)
        monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", str(uuid4()))
        outcome = flows.run_job(purge)

    assert isinstance(outcome, State)
    assert (outcome.name, outcome.is_completed()) == ("Skipped", True)
    with Session(engine) as session:
        assert runs.recent_runs(session, 1) == []


def test_a_failure_that_left_no_row_gets_one(engine: Engine):
    run = uuid4()

    for _ in range(2):
        with Session(engine) as session, session.begin():
            runs.close_failed(session, "purge", run, "failed", "no model\nat all")

    with Session(engine) as session:
        [failed] = runs.failed_runs(session)
    assert (failed.flow, failed.error) == ("purge", "no model\nat all")


def test_the_last_run_of_each_flow_and_source_decides_whether_it_is_listed(engine: Engine):
    with Session(engine) as session, session.begin():
        for flow, source, outcome in (
            ("ingest", "a", "failed"),
            ("ingest", "b", "failed"),
            ("ingest", "a", "completed"),
            ("purge", None, "failed"),
        ):
            run = uuid4()
            runs.start_run(session, run, flow, source=source)
            runs.end_run(session, run, outcome, counts={}, seconds={})
            session.execute(text("update runs set started = started - interval '1 minute'"))
        runs.start_run(session, uuid4(), "purge")

    with Session(engine) as session:
        assert {(run.flow, run.source) for run in runs.failed_runs(session)} == {
            ("ingest", "b"),
            ("purge", None),
        }


def test_a_port_that_is_taken_is_one_line_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SIGHTLINE_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "flows.cli", "serve", "--port", str(port)]

        done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert f"PREFECT_API_URL=http://127.0.0.1:{port}/api" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.full  # the console's tests do the same through its pages
def test_a_person_sees_what_is_served_pauses_a_flow_and_resumes_it(served: Served):
    def look() -> dict[str, DeployedFlow]:
        with open_prefect(served.home) as prefect:
            return {one.flow: one for one in prefect.deployed()}

    shown = look()
    purge = shown["purge"]
    with open_prefect(served.home) as prefect:
        prefect.pause("purge", paused=True)
        assert look()["purge"].paused
        for one in prefect.client.read_deployment(purge.id).schedules:  # as its own pages pause
            prefect.client.update_deployment_schedule(purge.id, one.id, active=False)
        prefect.pause("purge", paused=False)
    assert not look()["purge"].paused

    said = (served.home.parent / "serve.log").read_text()
    assert str(password_file(served.home)) in said.replace("\n", "")
    assert password_of(served.home).partition(":")[2] not in said
    assert [*shown] == [flow.name for flow in (*flows.SCHEDULED, *flows.ON_REQUEST)]
    assert purge.cron == ONCE_A_YEAR
    assert (purge.scheduled, shown["retry"].scheduled) == (True, False)


@pytest.mark.full  # the console's tests do the same through its pages
def test_a_person_starts_a_run_follows_it_and_cancels_it(served: Served, postgres: Engine):
    with open_prefect(served.home) as prefect, items_locked(postgres):
        run = prefect.start("reconcile")
        wait_long(lambda: is_at_work(served, postgres, str(run)))
        [begun] = [one for one in prefect.active_runs() if one.id == run]

        prefect.cancel(run)

        assert served.end_of(str(run))["type"] == "CANCELLED"
    assert (begun.flow, begun.state) == ("reconcile", "Running")
    assert prefect.page_of(run) == f"http://127.0.0.1:{served.port}/runs/flow-run/{run}"
    wait_long(lambda: [row[2] for row in served.row(postgres, str(run))] == ["cancelled"])
    assert [one for one in status()["failed"] if one["flow"] == "reconcile"] == []


@pytest.mark.full  # the console's tests do the same through its pages
def test_a_person_has_a_reject_tried_again(served: Served, postgres: Engine):
    picture = served.home.parent / "apples" / "broken.png"
    picture.write_bytes(b"no picture")
    with open_deps(served.settings) as deps:
        ingest_source(deps, served.settings, Request(picture.parent))
        with deps.sessions() as session:
            [reject] = rejects.open_rejects(session, source="apples")
    picture.write_bytes(png("blue"))

    with open_prefect(served.home) as prefect:
        run = prefect.start("retry", rejects=[str(reject.id)])
        ended = served.end_of(str(run))
        wait_long(lambda: any("Beginning flow run" in line.message for line in prefect.log(run)))

    assert ended["type"] == "COMPLETED"
    with Session(postgres) as session:
        assert rejects.open_rejects(session, source="apples") == []


def test_without_a_server_a_person_is_told_what_starts_one(tmp_path: Path):
    with pytest.raises(NothingServes, match="sightline up"), open_prefect(tmp_path):
        pass
