"""An ingest whose Prefect server ends in the middle goes on, and is on record as completed."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient
from sqlalchemy import Engine, text

from flows.orchestration.server import EmbeddedServer, embedded_server
from storage.embedded.qdrant.process.discovery import find
from tests.conftest import emptied
from tests.support import forks, prefect_database
from tests.support.builders import png
from tests.support.processes import HomeAt, a_free_port, environment_of
from tests.support.tiny_clip import write_tiny_clip

LAST_BEFORE = 2
"""Images that the host gives out before the server ends."""


@pytest.fixture
def server(home_at: HomeAt, tmp_path: Path, prefect_tables: Path) -> Iterator[EmbeddedServer]:
    home = home_at(tmp_path / "home")
    prefect_database.give(home, prefect_tables)
    with embedded_server(home, a_free_port()) as server:
        yield server


@pytest.fixture
def images(server: EmbeddedServer) -> Iterator[str]:
    """A host of images that kills Prefect's server before it gives out the third."""
    requested: list[str] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            if len(requested) == LAST_BEFORE + 1:
                server.process.kill()
                server.process.wait()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(png("red", (16, 16 + len(requested))))

        def log_message(self, format: str, *args: Any) -> None:
            """Keep quiet."""

    host = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=host.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{host.server_port}"
    host.shutdown()
    host.server_close()


def test_it_goes_on_and_the_terminal_names_the_server_alone(
    engine: Engine,
    embedded: QdrantClient,
    index_home: Path,
    tmp_path: Path,
    images: str,
    monkeypatch: pytest.MonkeyPatch,
):
    access, manifest, model = find(index_home), tmp_path / "m.jsonl", tmp_path / "model"
    assert access is not None
    write_tiny_clip(model)
    rows = [{"key": str(n), "image": f"{images}/{n}.png"} for n in range(6)]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    for name, value in environment_of(tmp_path / "home", engine.url, access, model).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SIGHTLINE_BATCH_SIZE", "1")

    for _ in emptied(embedded):
        ended = forks.sightline("ingest", manifest)

    with engine.begin() as connection:
        [run] = connection.execute(text("select outcome, counts->>'embedded' from runs")).all()
    assert tuple(run) == ("completed", "6")
    assert "Prefect's server does not answer any more; its run is on record" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Error logging" not in ended.stderr
