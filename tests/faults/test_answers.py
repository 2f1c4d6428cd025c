"""Faults that a server answers at each stage of a run: waited for, or named at once."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pydantic import SecretStr
from qdrant_client import QdrantClient
from sqlalchemy import Engine

from flows.config.settings import Qdrant, Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.maintenance.backup import backup
from flows.reindexing.reindex import ReindexRequest, reindex
from flows.resources.comparison import reconcile
from flows.resources.connections import Deps, Stores, open_stores
from flows.tracking.errors import explain
from storage.embedded.qdrant.process.discovery import find
from tests.conftest import SERVER, emptied
from tests.faults.answers import Answer, Answers, answers_before
from tests.support.builders import a_folder, png
from tests.support.fakes import ColourEncoder

pytestmark = pytest.mark.system

Job = Callable[[Stores, Settings, Path], object]
GOOD = {f"{n}.png": png("red", (16, 16 + n)) for n in range(6)}
SHARES = (0.0, 0.25, 0.5, 0.75, 0.95)
"""Where in a run the fault comes, of its requests."""

PASSES = {
    "a node": Answer(500, "Service internal error: status: Unavailable, failed to connect"),
    "bad gateway": Answer(502),
    "unavailable": Answer(503),
    "unavailable, for a named time": Answer(503, retry_after_s=1),
    "gateway timeout": Answer(504),
    "timeout": Answer(408, "Timeout error"),
    "rate": Answer(429, "Rate limiting exceeded: Write rate limit exceeded", retry_after_s=1),
}
STAYS = {
    "key": (Answer(401, "Invalid API key or JWT"), "SIGHTLINE_QDRANT__API_KEY"),
    "read-only key": (Answer(403, "Forbidden: Global manage access is required"), "may write"),
    "disk": (Answer(500, "Service internal error: No space left on device"), "disk space"),
    "strict mode": (Answer(400, "Bad request: Limit exceeded. Help: Reduce the limit."), "strict mode"),
}
AT_ONCE_S = 8.0
"""Of a busy machine; the retry time of these runs is longer."""


@pytest.fixture
def answers(embedded: QdrantClient, index_home: Path) -> Iterator[Answers]:
    where = urlsplit(SERVER or find(index_home).url)
    for _ in emptied(embedded):
        with answers_before(where.hostname, where.port) as proxy:
            yield proxy


@pytest.fixture
def through(answers: Answers, engine: Engine, index_home: Path, tmp_path: Path) -> Settings:
    key = SecretStr(find(index_home).key)
    return Settings(
        home=tmp_path / "home",
        batch_size=2,
        database_url=SecretStr(engine.url.render_as_string(hide_password=False)),
        qdrant=Qdrant(url=f"http://127.0.0.1:{answers.port}", api_key=key),
        retry_for_s=30,
    )


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return a_folder(tmp_path / "shop", GOOD)


def with_encoder(stores: Stores) -> Deps:
    return Deps(stores.engine, stores.sessions, stores.vectors, stores.blobs, ColourEncoder())


def ingested(stores: Stores, settings: Settings, folder: Path) -> None:
    assert ingest_source(with_encoder(stores), settings, Request(folder)).outcome == "completed"


def reindexed(stores: Stores, settings: Settings, _: Path) -> None:
    reindex(
        stores,
        settings,
        ReindexRequest("turned", force=True),
        load=lambda _settings, name: ColourEncoder(name, f"{name}1"),
    )


def backed_up(stores: Stores, settings: Settings, folder: Path) -> None:
    target = folder.parent / "backups"
    done = backup(stores, str(target), settings.home / "scratch", for_s=settings.retry_for_s)
    assert sum(one.points for one in done.manifest.collections) == len(GOOD)


JOBS: dict[str, Job] = {"ingest": ingested, "reindex": reindexed, "backup": backed_up}


def prepared(stores: Stores, settings: Settings, shop: Path, job: str) -> None:
    if job != "ingest":
        ingested(stores, settings, shop)


def nothing_is_lost(stores: Stores) -> None:
    report = reconcile(stores)
    assert (report.items, report.work) == (len(GOOD), 0)


def spread(job: str, faults: dict[str, object], gate: dict[str, float]) -> list:
    """All places of a job, of which the gate tries those in `gate`."""
    return [
        pytest.param(job, name, share, marks=() if gate.get(name) == share else pytest.mark.full)
        for name in faults
        for share in SHARES
    ]


REQUESTS = {"ingest": 18, "reindex": 44, "backup": 6}
"""As many as the job makes, or a few less."""


@pytest.mark.parametrize(
    ("job", "name", "share"),
    [
        *spread("ingest", PASSES, {"rate": 0.5, "a node": 0.95}),
        *spread("reindex", PASSES, {"unavailable, for a named time": 0.75}),
        *spread("backup", PASSES, {"a node": 0.5}),
    ],
)
def test_a_fault_that_passes_is_waited_for_and_nothing_is_lost(
    answers: Answers, through: Settings, shop: Path, job: str, name: str, share: float
):
    fault = PASSES[name]
    with open_stores(through) as stores:
        prepared(stores, through, shop, job)
        answers.answer(fault, first=1 + int(share * REQUESTS[job]), many=1)

        JOBS[job](stores, through, shop)

        assert len(answers.answered) == 1
        waited_s = time.monotonic() - answers.answered[0]
        assert waited_s >= (fault.retry_after_s or 0)
        assert waited_s < through.retry_for_s
        nothing_is_lost(stores)


@pytest.mark.parametrize(
    ("job", "name", "share"),
    [
        *spread("ingest", STAYS, {"disk": 0.5}),
        *spread("reindex", STAYS, {"read-only key": 0.5}),
        *spread("backup", STAYS, {"strict mode": 0.5}),
    ],
)
def test_a_fault_that_stays_ends_the_run_at_once_and_the_next_run_finishes(
    answers: Answers, through: Settings, shop: Path, job: str, name: str, share: float
):
    fault, says = STAYS[name]
    with open_stores(through) as stores:
        prepared(stores, through, shop, job)
        answers.answer(fault, first=1 + int(share * REQUESTS[job]), many=10**6)

    with pytest.raises(Exception) as failed, open_stores(through) as stores:  # noqa: PT011 (its text is compared)
        JOBS[job](stores, through, shop)

    assert time.monotonic() - answers.answered[0] < AT_ONCE_S
    assert says in explain(failed.value)
    answers.answer(None)
    with open_stores(through) as stores:
        JOBS[job](stores, through, shop)
        nothing_is_lost(stores)


class EndpointConnectionError(ConnectionError):
    """As a client of S3 names it: the client itself is optional."""


EndpointConnectionError.__module__ = "botocore.exceptions"


class AwayAtFirst(MemoryFileSystem):
    """An object store whose first writes are not answered."""

    protocol = "away"
    away = 0

    def pipe_file(self, path: str, value: bytes, **options: object) -> None:
        if AwayAtFirst.away > 0:
            AwayAtFirst.away -= 1
            raise EndpointConnectionError("Could not connect to the endpoint URL")
        super().pipe_file(path, value, **options)


def test_an_object_store_that_does_not_answer_is_waited_for(
    through: Settings, shop: Path, monkeypatch: pytest.MonkeyPatch
):
    fsspec.register_implementation("away", AwayAtFirst, clobber=True)
    monkeypatch.setattr(AwayAtFirst, "away", 2)
    kept = through.model_copy(update={"pictures_url": "away://images"})

    with open_stores(kept) as stores:
        ingested(stores, kept, shop)

        assert AwayAtFirst.away == 0
        nothing_is_lost(stores)
