"""A real Prometheus scrapes a running Sightline: its alerts, and every query of the dashboard."""

import json
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import uvicorn
import yaml
from pydantic import SecretStr
from qdrant_client import QdrantClient
from sqlalchemy import Engine, text
from sqlalchemy.orm import sessionmaker
from starlette.applications import Starlette

from flows.config.settings import Settings
from flows.datasets.test_sets import EvaluationChoice, choose_test_set
from flows.evaluation.evaluate import evaluate
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.ingestion.run_state import TooManyRejects
from flows.resources.comparison import record_comparison
from flows.resources.connections import Deps
from flows.search.query import Query, search
from flows.service.metrics import metrics_route
from flows.service.observer import Observer
from flows.service.pool import Backend
from storage import qdrant
from storage.blobs import Blobs
from tests.conftest import emptied
from tests.support import tools
from tests.support.builders import a_folder, png
from tests.support.fakes import ColourEncoder
from tests.support.processes import wait_until
from tests.support.tools import tool

pytestmark = pytest.mark.system

INFRA = Path(__file__).parents[2] / "infra"
RULES = INFRA / "prometheus" / "rules" / "sightline.yaml"
DASHBOARD = INFRA / "grafana" / "dashboards" / "sightline.json"
FOR = re.compile(r"^(\s+for:) \S+$", re.MULTILINE)
METRIC = re.compile(r"\bsightline_[a-z_]+\b")
WINDOW = "1m"
PATIENCE_S = 90
SHOP: dict[str, bytes | str] = {
    "rose.png": png("red"),
    "rose.txt": "red",
    "leaf.png": png("green"),
    "leaf.txt": "green",
    "bad.png": b"no picture",
}


def wait_long(condition: Callable[[], bool]) -> None:
    wait_until(condition, patience_s=PATIENCE_S)


@dataclass(frozen=True, slots=True)
class Watched:
    """A Sightline that serves its metrics, and the Prometheus that scrapes it."""

    deps: Deps
    backend: Backend
    observer: Observer
    prometheus: str
    shop: Path

    def ask(self, query: str) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.prometheus}/api/v1/query", params={"query": query}, timeout=30)
        assert answer.is_success, answer.text
        return answer.json()["data"]["result"]

    def alerts(self) -> dict[str, dict[str, Any]]:
        answer = httpx.get(f"{self.prometheus}/api/v1/alerts", timeout=30)
        alerts = answer.json()["data"]["alerts"]
        return {one["labels"]["alertname"]: one for one in alerts if one["state"] == "firing"}

    def names(self) -> set[str]:
        answer = httpx.get(f"{self.prometheus}/api/v1/label/__name__/values", timeout=30)
        return set(answer.json()["data"])

    def ingest(self) -> None:
        ingest_source(self.deps, self.backend.settings, Request(self.shop))
        self.observer.refresh()


@pytest.fixture
def watched(engine: Engine, embedded: QdrantClient, index_home: Path, tmp_path: Path) -> Iterator[Watched]:
    """One whose records were ingested, evaluated, compared and searched."""
    prometheus = tool("prometheus")
    url = SecretStr(engine.url.render_as_string(hide_password=False))
    settings = Settings(home=index_home, database_url=url, batch_size=4, decode_workers=0)
    backend = Backend(settings, load=lambda _settings, _name: ColourEncoder())
    observer = Observer(backend)
    blobs = Blobs(str(tmp_path / "blobs"))
    deps = Deps(engine, sessionmaker(engine), embedded, blobs, ColourEncoder())
    shop = a_folder(tmp_path / "shop", SHOP)
    with (
        contextmanager(emptied)(embedded),
        observer.running(),
        served(Starlette(routes=[metrics_route(observer)])) as port,
        prometheus_over(prometheus, tmp_path / "prometheus", port) as address,
    ):
        watched = Watched(deps, backend, observer, address, shop)
        wait_long(lambda: bool(watched.ask('up{job="sightline"} == 1')))
        watched.ingest()
        chosen = choose_test_set(deps, settings, EvaluationChoice(), ())
        evaluate(deps, settings, (), chosen, load=lambda _settings, _name: ColourEncoder())
        record_comparison(deps, settings)
        yield watched
    backend.close()


@contextmanager
def served(app: Starlette) -> Iterator[int]:
    """Serve `app` on loopback, at the port that is yielded."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = Thread(target=server.run)
    thread.start()
    wait_long(lambda: server.started)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def prometheus_over(program: str, folder: Path, port: int) -> Iterator[str]:
    """Run a Prometheus that scrapes that port, with our rules, which wait for nothing; yield its address."""
    folder.mkdir()
    (folder / "rules.yaml").write_text(FOR.sub(r"\1 0s", RULES.read_text()))
    scrape = {"job_name": "sightline", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
    pace = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    config = {"global": pace, "rule_files": ["rules.yaml"], "scrape_configs": [scrape]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    own = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{own}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{own}"
    try:
        wait_long(lambda: answers(f"{address}/-/ready") or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()
        yield address
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False


def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())


def panels() -> list[dict[str, Any]]:
    return [one for one in dashboard()["panels"] if one["type"] != "row"]


def queries() -> list[str]:
    """Every query of the dashboard, as Grafana would send it."""
    filled = {"$__rate_interval": WINDOW, "$instance": ".*", "$job": ".*"}
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    for variable, value in filled.items():
        found = [query.replace(variable, value) for query in found]
    return found


def is_told(samples: list[dict[str, Any]]) -> bool:
    return any(sample["value"][1] != "NaN" for sample in samples)


def test_every_query_of_the_dashboard_has_an_answer_and_rules_ask_only_for_what_there_is(watched: Watched):
    with watched.backend.searching() as searching:
        silent = queries()
        deadline = time.monotonic() + PATIENCE_S
        while silent and time.monotonic() < deadline:
            search(searching, Query("red"))
            watched.observer.refresh()
            silent = [query for query in silent if not is_told(watched.ask(query))]

    [group] = yaml.safe_load(RULES.read_text())["groups"]
    asked = set(METRIC.findall(" ".join(rule["expr"] for rule in group["rules"])))
    assert (silent, asked - watched.names()) == ([], set())


def test_an_alert_fires_while_the_index_is_stale_and_ends_with_the_next_ingest(watched: Watched):
    wait_long(lambda: bool(watched.ask("sightline_records{state='searchable'} == 2")))
    assert "SightlineIndexStale" not in watched.alerts()

    with watched.deps.engine.begin() as connection:  # as an ingest leaves it that was killed before its marks
        connection.execute(text("delete from marks"))
        connection.execute(text("update items set updated = now() - interval '2 hours'"))
    watched.observer.refresh()
    wait_long(lambda: "SightlineIndexStale" in watched.alerts())
    fired = watched.alerts()["SightlineIndexStale"]
    watched.ingest()
    wait_long(lambda: "SightlineIndexStale" not in watched.alerts())

    summary = fired["annotations"]["summary"]
    assert re.fullmatch(r"A record has waited for 2h 0m \d+s to become searchable", summary)
    assert "sightline ingest SOURCE" in fired["annotations"]["description"]


def test_a_flow_that_fails_and_stores_that_differ_are_told(watched: Watched):
    (watched.shop / "rose.png").write_bytes(b"no picture either")
    (watched.shop / "leaf.png").write_bytes(b"nor this")
    with pytest.raises(TooManyRejects):
        watched.ingest()
    [collection] = qdrant.list_collections(watched.deps.vectors)
    watched.deps.vectors.delete_collection(collection)
    record_comparison(watched.deps, watched.backend.settings)
    watched.observer.refresh()

    wait_long(lambda: {"SightlineFlowFailing", "SightlineStoresDiffer"} <= watched.alerts().keys())
    failing = watched.alerts()["SightlineFlowFailing"]
    assert failing["annotations"]["summary"] == "The last ingest run failed"


@pytest.mark.parametrize(("must", "ends"), [(False, pytest.skip.Exception), (True, pytest.fail.Exception)])
def test_without_a_tool_a_test_is_skipped_or_fails_where_all_must_be_there(
    must: bool, ends: type[BaseException], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tools, "MUST", must)

    with pytest.raises(ends, match="no-such-program is not installed"):
        tool("no-such-program")


def test_the_rules_are_what_prometheus_takes_and_each_does_what_its_test_says():
    promtool = tool("promtool")
    for what, path in (("check", RULES), ("test", RULES.parent / "tests" / RULES.name)):
        ended = subprocess.run(
            [promtool, what, "rules", str(path)], capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr


def test_each_alert_says_what_happened_and_which_command_or_log_helps():
    [group] = yaml.safe_load(RULES.read_text())["groups"]
    tried = (RULES.parent / "tests" / RULES.name).read_text()
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), rule["alert"]
        assert rule["annotations"]["summary"], rule["alert"]
        assert "`sightline" in rule["annotations"]["description"], rule["alert"]
        assert f'alertname="{rule["alert"]}"' in tried, f"{rule['alert']} has no test"


def test_panels_say_what_they_show_and_do_not_overlap():
    board = dashboard()
    taken: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for cell in ((x, y) for x in range(place["w"]) for y in range(place["h"])):
            at = (place["x"] + cell[0], place["y"] + cell[1])
            assert taken.setdefault(at, panel["title"]) == panel["title"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in panels():
        assert panel["title"], panel["id"]
        assert panel["description"], panel["title"]
        assert panel["targets"], panel["title"]
        for asked in (panel, *panel["targets"]):
            assert asked["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert "unit" in panel["fieldConfig"]["defaults"] or panel["title"] in ("Stores", "Index in use")
    assert {one["name"] for one in board["templating"]["list"]} == {"datasource", "instance", "job"}
