"""The metrics at `/metrics`, with available and unavailable stores."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from qdrant_client import QdrantClient
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, sessionmaker
from starlette.applications import Starlette
from starlette.testclient import TestClient

from embedding.images.decode import BadImage
from flows.config.settings import Qdrant, Schedules, Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.maintenance.repair import repair
from flows.resources.comparison import record_comparison
from flows.resources.connections import Deps
from flows.search.query import Query, search
from flows.service.metrics import families, metrics_route
from flows.service.observer import Observation, Observer, observe
from flows.service.pool import Backend
from flows.service.search_metrics import SearchTimes
from storage import qdrant
from storage.blobs import Blobs
from storage.postgres import runs
from storage.postgres.run_totals import ingest_totals
from tests.conftest import emptied
from tests.support.builders import a_folder, a_manifest, png
from tests.support.fakes import ColourEncoder
from tests.support.tools import tool

SHOP = {"rose.png": png("red"), "leaf.png": png("green"), "leaf.txt": "green", "bad.png": b"no picture"}
AWAY = "postgresql+psycopg://nobody@127.0.0.1:9/nothing"

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def served_index(embedded: QdrantClient) -> Iterator[QdrantClient]:
    yield from emptied(embedded)


@pytest.fixture
def backend(engine: Engine, index_home: Path, served_index: QdrantClient) -> Iterator[Backend]:
    """The backend of a server, over the tests' Postgres and the embedded index."""
    assert served_index
    url = engine.url.render_as_string(hide_password=False)
    settings = Settings(home=index_home, database_url=SecretStr(url), batch_size=4, decode_workers=0)
    backend = Backend(settings, load=lambda _settings, _name: ColourEncoder())
    yield backend
    backend.close()


@pytest.fixture
def deps(engine: Engine, served_index: QdrantClient, tmp_path: Path) -> Deps:
    return Deps(engine, sessionmaker(engine), served_index, Blobs(str(tmp_path / "blobs")), ColourEncoder())


def ingest(deps: Deps, backend: Backend, location: Path, **asked: object) -> None:
    ingest_source(deps, backend.settings, Request(location, **asked))


def scraped(backend: Backend) -> str:
    with TestClient(Starlette(routes=[metrics_route(Observer(backend))])) as client:
        answer = client.get("/metrics")
    assert answer.status_code == 200
    return answer.text


def values(exposition: str) -> Values:
    return {
        (one.name, frozenset(one.labels.items())): one.value
        for family in text_string_to_metric_families(exposition)
        for one in family.samples
    }


def value(found: Values, name: str, **labels: str) -> float:
    return found[f"sightline_{name}", frozenset(labels.items())]


def names(found: Values) -> set[str]:
    return {name for name, _ in found}


def test_metrics_count_records_and_name_the_collection(deps: Deps, backend: Backend, tmp_path: Path):
    ingest(deps, backend, a_folder(tmp_path / "shop", SHOP))

    found = values(scraped(backend))

    assert value(found, "records", state="searchable") == value(found, "index_points") == 2
    assert value(found, "records", state="pending") == value(found, "oldest_pending_age_seconds") == 0
    assert value(found, "rejects_open", reason="not_a_picture", source="shop") == 1
    assert value(found, "ingest_records_total", result="embedded") == 2
    assert value(found, "ingest_records_total", result="rejected") == 1
    assert value(found, "runs_total", flow="ingest", outcome="completed") == 1
    assert value(found, "runs_total", flow="backup", outcome="failed") == 0
    assert value(found, "last_ingest_records_per_second") > 0
    assert value(found, "ingest_stage_seconds_total", stage="embed") >= 0
    collection = qdrant.collection_name("colour1")
    assert value(found, "index_info", model="colour", fingerprint="colour1", collection=collection) == 1
    assert value(found, "store_up", store="qdrant") == value(found, "store_up", store="postgres") == 1


def test_promtool_finds_nothing_to_say_against_them(deps: Deps, backend: Backend, tmp_path: Path):
    ingest(deps, backend, a_folder(tmp_path / "shop", SHOP))
    record_comparison(deps, backend.settings)

    exposition = scraped(backend)

    ended = subprocess.run(
        [tool("promtool"), "check", "metrics"], input=exposition, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")


def test_a_store_that_is_away_has_no_figures_rather_than_zeros(
    deps: Deps, backend: Backend, tmp_path: Path, index_home: Path
):
    ingest(deps, backend, a_folder(tmp_path / "shop", SHOP))
    without = Backend(Settings(home=index_home, database_url=SecretStr(AWAY)))

    found = values(scraped(without))

    assert value(found, "store_up", store="postgres") == 0
    assert value(found, "store_up", store="qdrant") == 1
    assert value(found, "index_points") == 2
    assert not names(found) & {"sightline_records", "sightline_runs_total", "sightline_rejects_open"}
    without.close()


def test_an_index_that_is_away_leaves_what_postgres_says(engine: Engine, tmp_path: Path):
    url = SecretStr(engine.url.render_as_string(hide_password=False))
    tmp_path.joinpath("home").mkdir()
    without = Backend(
        Settings(home=tmp_path / "home", database_url=url, qdrant=Qdrant(url="http://127.0.0.1:9"))
    )

    found = values(scraped(without))

    assert (value(found, "store_up", store="qdrant"), value(found, "store_up", store="postgres")) == (0, 1)
    assert value(found, "records", state="searchable") == 0
    assert not names(found) & {"sightline_index_points", "sightline_index_info"}
    without.close()


def test_what_waits_is_pending_for_as_long_as_it_has_waited(
    deps: Deps, backend: Backend, engine: Engine, tmp_path: Path
):
    ingest(deps, backend, a_folder(tmp_path / "shop", SHOP))
    with engine.begin() as connection:
        connection.execute(text("update items set updated = now() - interval '3 hours'"))
        connection.execute(text("delete from marks"))

    found = values(scraped(backend))

    assert value(found, "records", state="pending") == 2
    assert value(found, "oldest_pending_age_seconds") == pytest.approx(3 * 3600, abs=60)


def test_pending_ages_between_two_looks(backend: Backend, engine: Engine, deps: Deps, tmp_path: Path):
    ingest(deps, backend, a_folder(tmp_path / "shop", SHOP))
    with engine.begin() as connection:
        connection.execute(text("delete from marks"))
    seen = observe(backend)

    def age(at: datetime) -> float:
        [metric] = [one for one in families(seen, Schedules(), at) if "oldest_pending" in one.name]
        return metric.samples[0].value

    assert age(seen.at + timedelta(minutes=5)) - age(seen.at) == pytest.approx(300)


def test_counters_grow_while_an_ingest_goes_on_and_count_a_scheduled_one_once(engine: Engine):

    with Session(engine) as session, session.begin():
        whole, part = uuid4(), uuid4()
        runs.start_run(session, whole, "ingest")
        runs.start_run(session, part, "ingest", source="shop")
        runs.end_run(session, whole, "completed", counts={"embedded": 5, "failed": {}}, seconds={})
        told = runs.StageProgress("embed", 5, 9, datetime.now(UTC), 0, datetime.now(UTC))
        runs.save_progress(session, part, told, counts={"embedded": 5, "unchanged": 2})

        found = ingest_totals(session)

    assert (found.results["embedded"], found.results["unchanged"], found.deleted) == (5, 2, 0)


def test_differences_are_gone_once_a_repair_has_repaired_them(deps: Deps, backend: Backend, tmp_path: Path):
    ingest(deps, backend, a_folder(tmp_path / "shop", SHOP))
    collection = qdrant.active_collection(deps.vectors)
    assert collection is not None
    deps.vectors.delete(collection.name, points_selector=[str(one) for one in ids(deps, collection.name)])
    record_comparison(deps, backend.settings)
    before = values(scraped(backend))
    repair(deps, backend.settings, max_delete=1, yes=True)
    after = values(scraped(backend))

    assert value(before, "reconcile_differences", kind="missing") == 2
    assert value(before, "runs_failing", flow="reconcile") == 1
    assert value(after, "reconcile_differences", kind="missing") == 0
    assert value(after, "runs_failing", flow="reconcile") == 0


def ids(deps: Deps, collection: str) -> list[object]:
    return [point.id for point in qdrant.scroll_entries(deps.vectors, collection)]


def test_flows_without_a_schedule_have_no_pause_to_be_measured_by():
    none = Observation(datetime.now(UTC), 0.0, None, "away", None, "away", 1, 2)
    schedules = Schedules(ingest="0 8 * * mon-fri", evaluate=None)

    [pauses] = [
        one
        for one in families(none, schedules, none.at)
        if one.name == "sightline_schedule_longest_pause_seconds"
    ]

    found = {one.labels["flow"]: one.value for one in pauses.samples}
    assert found == {"ingest": 3 * 86400, "reconcile": 86400, "purge": 86400}


def test_a_search_through_a_backend_is_timed(deps: Deps, backend: Backend, tmp_path: Path):
    ingest(deps, backend, a_manifest(tmp_path / "notes.jsonl", [{"key": "a", "text": "red"}]))
    with backend.searching() as searching:
        search(searching, Query("red", find="texts"))
        search(searching, Query("green", find="texts"))
        search(deps, Query("blue"))  # not through the backend

    found = values(scraped(backend))

    assert value(found, "search_duration_seconds_count", query="text", find="texts") == 2
    assert value(found, "search_duration_seconds_count", query="text", find="images") == 0
    assert value(found, "search_failures_total", query="text", find="texts") == 0


def test_a_search_that_fails_is_counted_apart_and_a_bad_image_is_no_failure():
    times = SearchTimes()
    for error in (ConnectionError("away"), BadImage("not_a_picture", "query.png", "no picture")):
        with pytest.raises(type(error)), times.of("image", "texts"):
            raise error

    samples = {
        (one.name, *one.labels.values()): one.value for metric in times.collect() for one in metric.samples
    }
    assert samples["sightline_search_failures_total", "image", "texts"] == 1
    assert samples["sightline_search_duration_seconds_count", "image", "texts"] == 0


def test_searching_on_the_command_line_imports_nothing_of_this():
    code = (
        "import sys, flows.cli, flows.search\n"
        "from flows.tracking.tracing import span\n"
        "with span('search'):\n"
        "    pass\n"
        "print([name for name in ('prometheus_client', 'opentelemetry', 'starlette') if name in sys.modules])"
    )

    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
