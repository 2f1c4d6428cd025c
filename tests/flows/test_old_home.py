"""A data directory and a backup made before the modules moved are used as they are."""

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import SecretStr
from qdrant_client import QdrantClient
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from flows.cli import main
from flows.config.settings import Qdrant, Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.maintenance.restore import restore
from flows.reindexing.reindex import ReindexRequest, reindex
from flows.resources.comparison import reconcile
from flows.resources.connections import open_deps, open_stores
from storage.embedded.postgres.account import choose_account
from storage.embedded.postgres.paths import PostgresPaths
from storage.embedded.postgres.server import find_binaries
from storage.embedded.qdrant.process.discovery import find
from storage.postgres import api_keys
from tests.conftest import emptied
from tests.support.processes import homes
from tests.support.tiny_clip import write_tiny_clip

PACKED = Path(__file__).parents[1] / "support" / "old_home.tar.xz"
"""Made by commit 3576c50: home, backups, the sources, and as JSON what its searches found.

Two sources (one reject, one deleted item, two duplicate images) were embedded by a tiny CLIP; then a head was
trained on it, promoted by force and re-indexed to. Left out: logs, locks and unneeded WAL.
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(PACKED) as file:
        file.extractall(folder, filter="tar")
    with homes() as home_at:
        paths = PostgresPaths(home_at(folder / "home"))
        account = choose_account(paths.home, paths.data, find_binaries())
        for path in (paths.folder, *paths.folder.rglob("*")):
            os.chown(path, account.uid, account.gid)
        yield folder


@pytest.fixture(scope="module")
def recorded(unpacked: Path) -> dict[str, Any]:
    return json.loads((unpacked / "recorded.json").read_text())


@pytest.fixture(scope="module")
def settings(unpacked: Path, recorded: dict[str, Any]) -> Settings:
    """The settings of its day: the model is the one that it trained."""
    return Settings(home=unpacked / "home", model=recorded["model"], decode_workers=0)


@pytest.fixture
def _commands(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have commands use it."""
    monkeypatch.setenv("SIGHTLINE_HOME", str(settings.home))
    monkeypatch.setenv("SIGHTLINE_MODEL", settings.model)


def said(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def places(found: dict[str, Any]) -> list[tuple[str, str, str | None]]:
    return [(hit["source"], hit["key"], hit["text"]) for hit in found["hits"]]


def scores(found: dict[str, Any]) -> list[float]:
    return [hit["score"] for hit in found["hits"]]


@pytest.mark.usefixtures("_commands")
def test_searches_find_the_same_with_the_same_scores(unpacked: Path, recorded: dict[str, Any]):
    for search in recorded["searches"]:
        arguments = [one.replace("shop/", f"{unpacked}/shop/") for one in search["arguments"]]

        found = said("search", *arguments)

        assert places(found) == places(search["found"])
        assert scores(found) == pytest.approx(scores(search["found"]), abs=1e-4)


@pytest.mark.usefixtures("_commands")
def test_status_and_rejects_are_the_same(recorded: dict[str, Any]):
    status, before = said("status"), recorded["status"]

    for name in ("items", "points", "collection", "rejects", "shared_pictures"):
        assert status[name] == before[name], name
    ingest = before["runs"][0]
    [now] = [run for run in status["runs"] if run["id"] == ingest["id"]]  # a backup came after it
    assert {name: now[name] for name in ingest} == ingest
    assert now.keys() - ingest.keys() == {"acknowledged"}
    assert said("rejects") == recorded["rejects"]


def test_an_api_key_is_known(settings: Settings, recorded: dict[str, Any]):
    with open_stores(settings) as stores, Session(stores.engine) as session:
        key = api_keys.find(session, recorded["key"])

    assert key is not None
    assert (key.name, key.scopes) == ("shop", ("read",))


def test_what_it_has_is_not_embedded_again_and_the_stores_agree(settings: Settings, unpacked: Path):
    with open_deps(settings) as deps:
        words, shop = (
            ingest_source(deps, settings, Request(unpacked / file, name=name))
            for file, name in (("words.jsonl", "words"), ("shop", "shop"))
        )

        assert (words.outcome, words.read, words.unchanged) == ("completed", 2, 2)
        assert (shop.outcome, shop.read, shop.rejected) == ("completed", 22, 1)
        assert (shop.updated, shop.embedded) == (21, 0)  # their images lie in another folder now
        assert reconcile(deps).work == 0


def test_searches_move_to_another_model(settings: Settings, tmp_path: Path, recorded: dict[str, Any]):
    other = str(write_tiny_clip(tmp_path / "tiny", seed=1))
    with open_stores(settings) as stores:
        done = reindex(stores, settings, ReindexRequest(other, force=True))

        assert (done.model, done.written, done.missing) == (other, recorded["status"]["items"]["items"], ())
        assert done.before == recorded["status"]["collection"]["name"]
        assert reconcile(stores).work == 0


def test_its_backup_comes_back_whole(
    settings: Settings,
    unpacked: Path,
    engine: Engine,
    index_home: Path,
    embedded: QdrantClient,
    recorded: dict[str, Any],
    tmp_path: Path,
):
    access = find(index_home)
    assert access is not None
    empty = settings.model_copy(
        update={
            "home": tmp_path / "home",
            "database_url": SecretStr(engine.url.render_as_string(hide_password=False)),
            "qdrant": Qdrant(url=access.url, api_key=SecretStr(access.key)),
        }
    )
    for _ in emptied(embedded):
        done = restore(empty, str(unpacked / "backups"))

        assert done.points == recorded["status"]["points"]
        assert (done.report.items, done.report.work) == (recorded["status"]["items"]["items"], 0)
        assert (empty.home / "models" / settings.model / "modules.json").is_file()
