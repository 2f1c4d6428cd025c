"""Connections that are refused, reset, cut or go silent in the middle of a run."""

import socket
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import get_args
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr
from qdrant_client import QdrantClient
from sqlalchemy import Engine

from flows.config.settings import Qdrant, Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.report import IngestReport
from flows.ingestion.request import Request
from flows.resources.comparison import reconcile
from flows.resources.connections import Deps, open_stores
from storage.embedded.qdrant.process.discovery import find
from storage.errors import StoreUnavailable
from tests.conftest import SERVER, emptied
from tests.faults.proxy import How, Proxy, a_proxy, to_postgres
from tests.support.builders import a_folder, png
from tests.support.fakes import ColourEncoder

pytestmark = pytest.mark.system

SEEDS = 1
MORE_SEEDS = 40
GOOD = {f"{n}.png": png("red", (16, 16 + n)) for n in range(8)}
WHILE_IT_LASTS_S = 1.0
STORES = ["postgres", "qdrant"]
STAYING = [("postgres", "stall"), ("qdrant", "reset")]
"""Stores that stay away, in the gate; `test_answers.py` has faults that a server answers."""

RETURNING = [("postgres", "refuse"), ("postgres", "reset"), ("qdrant", "stall"), ("qdrant", "cut")]
"""Stores that come back, in the gate: each way once, each store twice."""


@pytest.fixture
def proxies(engine: Engine, embedded: QdrantClient, index_home: Path) -> Iterator[dict[str, Proxy]]:
    """Between us and the real Postgres, and between us and the embedded index or the server that is set."""

    def to_qdrant() -> socket.socket:
        where = urlsplit(SERVER or find(index_home).url)
        return socket.create_connection((where.hostname, where.port), timeout=5)

    for _ in emptied(embedded):
        with a_proxy(to_postgres(engine)) as postgres, a_proxy(to_qdrant) as qdrant:
            yield {"postgres": postgres, "qdrant": qdrant}


@pytest.fixture
def through(proxies: dict[str, Proxy], engine: Engine, index_home: Path, tmp_path: Path) -> Settings:
    """Settings that lead through the proxies, with limits short enough to wait for."""
    access = find(index_home)
    query = {"connect_timeout": "2"}  # libpq knows no shorter one
    url = engine.url.set(host="127.0.0.1", port=proxies["postgres"].port, query=query)
    key = SecretStr(access.key)
    return Settings(
        home=tmp_path / "home",
        batch_size=2,
        database_url=SecretStr(url.render_as_string(hide_password=False)),
        database_timeout_s=1,
        qdrant=Qdrant(url=f"http://127.0.0.1:{proxies['qdrant'].port}", api_key=key, timeout_s=1),
        retry_for_s=20,
    )


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return a_folder(tmp_path / "shop", GOOD | {"bad.png": b"no picture"})


def ingest(settings: Settings, folder: Path) -> IngestReport:
    with open_stores(settings, wait_s=settings.retry_for_s) as stores:
        deps = Deps(stores.engine, stores.sessions, stores.vectors, stores.blobs, ColourEncoder())
        return ingest_source(deps, settings, Request(folder))


def left(settings: Settings) -> dict[str, int]:
    with open_stores(settings) as stores:
        report = reconcile(stores)
        return {"items": report.items, "damage": report.damage, "pending": report.counts["pending"]}


def break_somewhere(proxies: dict[str, Proxy], store: str, seed: int, how: How, for_s: float) -> Proxy:
    """Break the connection to `store` after a number of bytes that `seed` gives, within one ingest's."""
    proxy = proxies[store]
    total = {"postgres": 40_000, "qdrant": 9_000}[store]
    proxy.break_after(Random(f"{store} {seed} {how}").randrange(500, total), how, for_s=for_s)
    return proxy


class TestAStoreThatIsAwayForAWhile:
    @pytest.mark.parametrize("seed", range(SEEDS))
    @pytest.mark.parametrize(
        ("store", "how"),
        [
            pytest.param(store, how, marks=() if (store, how) in RETURNING else pytest.mark.full)
            for store in STORES
            for how in get_args(How)
        ],
    )
    def test_is_waited_for(
        self, proxies: dict[str, Proxy], through: Settings, shop: Path, store: str, how: How, seed: int
    ):
        proxy = break_somewhere(proxies, store, seed, how, WHILE_IT_LASTS_S)

        report = ingest(through, shop)

        assert proxy.broken == 1
        assert (report.read, report.rejected, report.outcome) == (9, 1, "completed")
        assert left(through) == {"items": 8, "damage": 0, "pending": 0}

    @pytest.mark.full
    @pytest.mark.parametrize("seed", range(SEEDS, MORE_SEEDS))
    @pytest.mark.parametrize("how", get_args(How))
    @pytest.mark.parametrize("store", STORES)
    def test_is_waited_for_wherever_it_breaks(
        self, proxies: dict[str, Proxy], through: Settings, shop: Path, store: str, how: How, seed: int
    ):
        self.test_is_waited_for(proxies, through, shop, store, how, seed)


class TestAStoreThatStaysAway:
    @pytest.mark.parametrize(
        ("store", "how"),
        [
            pytest.param(store, how, marks=() if (store, how) in STAYING else pytest.mark.full)
            for store in STORES
            for how in get_args(How)
        ],
    )
    def test_ends_the_run_with_its_name_and_address_and_the_next_run_finishes(
        self, proxies: dict[str, Proxy], through: Settings, shop: Path, store: str, how: How
    ):
        hasty = through.model_copy(update={"retry_for_s": 1.0})
        proxy = break_somewhere(proxies, store, 0, how, 3600)

        with pytest.raises(StoreUnavailable) as failed:
            ingest(hasty, shop)

        assert str(failed.value).lower().startswith(f"{store} at ")
        assert f"127.0.0.1:{proxy.port}" in str(failed.value)
        proxy.break_after(10**9, how, for_s=0)
        assert left(through)["damage"] == 0
        ingest(through, shop)
        assert left(through) == {"items": 8, "damage": 0, "pending": 0}
