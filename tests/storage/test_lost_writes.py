"""An index with lost writes reports them, and is repaired from Postgres."""

from pathlib import Path

import pytest

from flows.config.settings import Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.maintenance.repair import repair
from flows.resources.comparison import reconcile
from flows.resources.connections import Deps, open_stores
from storage import qdrant
from tests.storage.test_embedded_life import kill
from tests.support.builders import a_folder, png
from tests.support.fakes import ColourEncoder

NAME = "items__colour1"
FILES = {"red.png": png("red"), "red.txt": "red", "blue.png": png("blue")}


@pytest.mark.full  # test_embedded_faults.py has the index, test_repair.py the repair
def test_writes_that_a_damaged_log_has_lost_are_named_and_repaired(home: Path, tmp_path: Path):
    settings = Settings(home=home, decode_workers=0)
    with open_stores(settings) as stores:
        deps = Deps(stores.engine, stores.sessions, stores.vectors, stores.blobs, ColourEncoder())
        ingest_source(deps, settings, Request(a_folder(tmp_path / "shop", FILES)))
        kill(home)
        for file in (home / "qdrant" / "shards").glob("*/wal/open-*"):
            file.write_bytes(file.read_bytes().replace(b"upsert_points", b"lost_in_crash"))

        found = reconcile(deps)
        mended = repair(deps, settings, max_delete=0.05, yes=False)

        assert found.counts == {"lost_writes": 1, "missing": 2}
        [lost] = [one for one in found.examples if one.kind == "lost_writes"]
        assert "sightline reconcile --repair" in lost.id
        assert mended.after.work == 0
        assert qdrant.optimizer_error(deps.vectors, NAME) is None
        assert qdrant.count(deps.vectors, NAME) == 2
