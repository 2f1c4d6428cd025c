"""Spans of real runs and searches, as a collector receives them."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from sqlalchemy import Engine

from flows.config.settings import Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import EmptySource, Request
from flows.resources.connections import Deps
from flows.search.query import Query, search
from flows.tracking import tracing
from flows.tracking.run_log import tracked_run
from storage.postgres.locks import flow_lock
from tests.support.builders import a_folder, png


@dataclass(slots=True)
class Collector:
    """Stands where spans are sent to, and keeps them."""

    address: str
    spans: list[Span] = field(default_factory=list)
    services: set[str] = field(default_factory=set)

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        for sent in request.resource_spans:
            names = {one.key: one.value.string_value for one in sent.resource.attributes}
            self.services.add(names["service.name"])
            self.spans += [span for scope in sent.scope_spans for span in scope.spans]

    def one(self, name: str) -> Span:
        [span] = [span for span in self.spans if span.name == name]
        return span

    def below(self, above: Span) -> set[str]:
        return {span.name for span in self.spans if span.parent_span_id == above.span_id}


def attributes(span: Span) -> dict[str, Any]:
    """Return what a span says of itself."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces":
                collector.take(body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    collector = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """One that this process sends its spans to."""
    tracing.provider.cache_clear()
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        yield collector
        provider = tracing.provider()
        tracing.provider.cache_clear()
        assert provider is not None
        provider.shutdown()


def sent() -> None:
    """Have all spans sent that have ended."""
    provider = tracing.provider()
    assert provider is not None
    assert provider.force_flush()


def test_an_ingest_is_a_span_with_its_batches_below_it_and_its_counts(
    deps: Deps, settings: Settings, tmp_path: Path, collector: Collector
):
    files = {f"{number}.png": png("red", (16, 16 + number)) for number in range(9)}
    report = ingest_source(deps, settings, Request(a_folder(tmp_path / "shop", files)))
    sent()

    run = collector.one("ingest")
    said = attributes(run)
    assert (said["sightline.run"], said["sightline.source"]) == (str(report.run), "shop")
    assert (said["sightline.outcome"], said["sightline.counts.embedded"]) == ("completed", 9)
    assert said["sightline.seconds.total"] > 0
    steps = {"batch: look", "batch: keep", "batch: embed", "batch: write"}
    assert collector.below(run) == {*steps, "embed"}
    assert sum(span.name == "batch: write" for span in collector.spans) == 3
    assert all(run.start_time_unix_nano <= span.start_time_unix_nano for span in collector.spans)
    assert collector.services == {"sightline"}


def test_a_run_that_fails_says_so_and_why(
    deps: Deps, settings: Settings, tmp_path: Path, collector: Collector
):
    manifest = tmp_path / "none.jsonl"
    manifest.write_text("")
    with pytest.raises(EmptySource):
        ingest_source(deps, settings, Request(manifest))
    sent()

    run = collector.one("ingest")
    assert run.status.code == Status.STATUS_CODE_ERROR
    assert "no record in it" in run.status.message
    assert attributes(run)["sightline.outcome"] == "failed"


def test_each_stage_of_a_run_is_a_span_until_the_next_begins(
    deps: Deps, engine: Engine, collector: Collector
):
    with tracked_run(deps.sessions, flow_lock(engine, "evaluate"), "evaluate") as run:
        for stage, done in (("texts", 0), ("texts", 5), ("pictures", 0)):
            run.progress(stage, done, 5)
    sent()

    texts, pictures = collector.one("texts"), collector.one("pictures")
    assert collector.below(collector.one("evaluate")) == {"texts", "pictures"}
    assert texts.end_time_unix_nano <= pictures.start_time_unix_nano
    assert pictures.end_time_unix_nano <= collector.one("evaluate").end_time_unix_nano


def test_a_search_says_where_its_time_went(
    deps: Deps, settings: Settings, tmp_path: Path, collector: Collector
):
    ingest_source(deps, settings, Request(a_folder(tmp_path / "shop", {"rose.png": png("red")})))
    search(deps, Query("red"))
    sent()

    found = collector.one("search")
    assert collector.below(found) == {"encode", "qdrant", "postgres"}
    assert attributes(found)["sightline.hits"] == 1
    assert attributes(found)["sightline.model"] == "colour"
    assert "red" not in attributes(found).values()  # what people ask is theirs


def test_a_command_sends_its_spans_before_it_ends(engine: Engine, index_home: Path):
    with collecting() as collector:
        environment = {
            "PATH": "/usr/bin:/bin",
            "SIGHTLINE_HOME": str(index_home),
            "SIGHTLINE_DATABASE_URL": engine.url.render_as_string(hide_password=False),
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.address}/v1/traces",
            "OTEL_SERVICE_NAME": "the shop's",
        }
        command = [sys.executable, "-c", "from flows.cli import main; main()", "purge"]
        ended = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
        )

    assert ended.returncode == 0, ended.stderr
    assert attributes(collector.one("purge"))["sightline.outcome"] == "completed"
    assert collector.services == {"the shop's"}
