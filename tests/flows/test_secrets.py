"""No password and no key gets into what is printed, logged or kept."""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from qdrant_client import QdrantClient
from sqlalchemy import Engine, text

from flows.orchestration.server import embedded_server
from storage.embedded.qdrant.process.discovery import find
from tests.conftest import emptied
from tests.support import forks
from tests.support.builders import a_folder, a_manifest, png
from tests.support.processes import a_free_port, environment_of
from tests.support.tiny_clip import write_tiny_clip

pytestmark = pytest.mark.system

PASSWORD = "hunter2-is-secret"


@pytest.fixture
def an_empty_index(embedded: QdrantClient) -> Iterator[None]:
    for _ in emptied(embedded):
        yield


@pytest.fixture
def environment(engine: Engine, index_home: Path, tmp_path: Path) -> dict[str, str]:
    """Servers by URL: a password in the one, a key for the other."""
    model = write_tiny_clip(tmp_path / "model")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "HOME": str(tmp_path / "user"),
        **environment_of(tmp_path / "home", engine.url.set(password=PASSWORD), find(index_home), model),
        "SIGHTLINE_RETRY_FOR_S": "0",
        "SIGHTLINE_FETCH_TIMEOUT_S": "1",
    }


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.full)], ids=["alone", "under Prefect"])
def _prefect(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """No Prefect server, or one that keeps its records in the home and has those of the ingest as well."""
    with embedded_server(tmp_path / "home", a_free_port()) if request.param else nullcontext():
        yield
        kept = b"".join(path.read_bytes() for path in (tmp_path / "home" / "prefect").rglob("*.db*"))
        assert (b"shop.jsonl" in kept) == request.param


@pytest.mark.usefixtures("an_empty_index", "_prefect")
def test_no_password_and_no_key_is_printed_logged_or_kept(
    engine: Engine, environment: dict[str, str], tmp_path: Path
):
    picture = f"http://someone:{PASSWORD}@127.0.0.1:1/a.png"
    rows = [{"key": "a", "text": "red"}, {"key": "b", "image": picture}, {"key": "c", "image": "c.png"}]
    manifest = a_manifest(tmp_path / "source" / "shop.jsonl", rows)
    a_folder(tmp_path / "source", {"c.png": png("red")})
    key = environment["SIGHTLINE_QDRANT__API_KEY"]
    dead = engine.url.set(host="127.0.0.1", port=1, password=PASSWORD, query={})
    broken = {"SIGHTLINE_DATABASE_URL": dead.render_as_string(hide_password=False)}
    odd = {"SIGHTLINE_DATABASE_URL": f"postgresql+nothing://me:{PASSWORD}@host/x"}
    no_url = {"SIGHTLINE_DATABASE_URL": f"me:{PASSWORD}@host/x"}
    away = {"SIGHTLINE_QDRANT__URL": "http://127.0.0.1:1"}

    said = [
        sightline({**environment, **other}, "--debug", *arguments)
        for other, arguments in [
            ({}, ["ingest", manifest]),
            ({}, ["rejects", "--json"]),
            ({}, ["status", "--json"]),
            ({}, ["backup", tmp_path / "home" / "backups"]),
            (broken, ["status"]),
            (odd, ["status"]),
            (no_url, ["status"]),
            (away, ["search", "red"]),
        ]
    ]

    assert "unreachable" in said[1]
    for answer in said:
        assert PASSWORD not in answer
        assert key not in answer
    for path in (tmp_path / "home").rglob("*"):
        if path.is_file() and path.name != "postgres.dump":
            data = path.read_bytes()
            assert PASSWORD.encode() not in data, path
            assert key.encode() not in data, path
    with engine.connect() as connection:
        for table in ("runs", "rejects", "models", "collections"):
            kept = connection.scalars(text(f"select t::text from {table} t where true")).all()
            assert PASSWORD not in str(kept)


def sightline(environment: dict[str, str], *arguments: object) -> str:
    done = forks.sightline(*arguments, environment=environment)
    return done.stdout + done.stderr
