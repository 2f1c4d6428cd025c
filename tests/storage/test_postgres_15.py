"""Ingest, comparison and deletion work with the oldest supported Postgres."""

from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from flows.config.settings import Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.maintenance.delete import delete_items
from flows.resources.comparison import reconcile
from flows.resources.connections import Deps
from flows.search.query import Query, search
from storage.postgres.catalog import Selection
from tests.support.builders import a_folder, png


@pytest.fixture
def engine(engine_15: Engine) -> Engine:
    return engine_15


def test_records_are_ingested_found_compared_and_deleted(deps: Deps, settings: Settings, tmp_path: Path):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red"), "b.png": png("blue"), "b.txt": "blue"})

    report = ingest_source(deps, settings, Request(folder))
    hits = search(deps, Query(text="red", find="images")).found
    compared = reconcile(deps)
    delete_items(deps, Selection(source="shop"), tmp_path, for_s=0)

    with deps.sessions() as session:
        assert str(session.scalar(text("show server_version"))).startswith("15.")
        assert session.scalar(text("select count(*) from items where deleted is null")) == 0
    assert (compared.items, compared.work) == (2, 0)
    assert report.embedded == 2
    assert hits[0].item.key == "a.png"
    assert deps.vectors.count("items").count == 0
    assert reconcile(deps).work == 0
