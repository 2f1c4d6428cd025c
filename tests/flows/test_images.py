"""An image is read again by the rules of whom it came from, and only as the bytes that are on record."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, text
from starlette.testclient import TestClient

from embedding.images.worker_pool import Workers
from flows.console.thumbnails import stored_image
from flows.datasets.near_duplicates import near_duplicates
from flows.datasets.training_pairs import StoredTrainingData
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.maintenance.repair import repair
from flows.resources.images import load_image
from flows.search.query import Query, gallery_page, search
from flows.service.pool import Backend
from storage.postgres import catalog, migrate
from storage.records import Origin, item_id
from storage.sources import addresses
from tests.support.apis import a_caller, taken_in, with_settings
from tests.support.builders import a_manifest, png
from tests.support.fakes import ColourEncoder

NAME = "pictures.example"
PUBLIC, PRIVATE = "127.0.0.2", "127.0.0.3"
"""Addresses of the loopback: the test has the first of them play a host of the internet."""

ROSE, LEAF = png("red"), png("green")
EVERY_READER = {"API", "console", "re-index", "training", "near duplicates"}


class Host:
    """A name with two servers behind it; it leads to one of them, as its owner likes."""

    def __init__(self, port: int) -> None:
        self.leads_to = PUBLIC
        self.serves = {PUBLIC: ROSE, PRIVATE: LEAF}
        self.asked: list[str] = []
        self.url = f"http://{NAME}:{port}/rose.png"


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = self.connection.getsockname()[0]
            known.asked.append(address)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(known.serves[address])

        def log_message(self, format: str, *args: Any) -> None:
            """Keep quiet."""

    real = socket.getaddrinfo

    def looked_up(host: Any, *args: Any, **named: Any) -> Any:
        return real(known.leads_to if host in (NAME, NAME.encode()) else host, *args, **named)

    loopback = IPv4Network("127.0.0.0/8").address_exclude(IPv4Network(f"{PUBLIC}/32"))
    others = (one for one in addresses.NOT_PUBLIC if one != IPv4Network("127.0.0.0/8"))
    monkeypatch.setattr(addresses, "NOT_PUBLIC", (*others, *loopback))
    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    with served(Answers, PUBLIC, 0) as port, served(Answers, PRIVATE, port):
        known = Host(port)
        yield known


@contextmanager
def served(answers: type[BaseHTTPRequestHandler], address: str, port: int) -> Iterator[int]:
    with ThreadingHTTPServer((address, port), answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def forgetful(backend: Backend) -> Iterator[Backend]:
    """A backend that keeps no images, only where they came from."""
    forgetful = with_settings(backend, keep_pictures=False)
    yield forgetful
    forgetful.close()


@pytest.fixture
def caller(forgetful: Backend) -> Iterator[TestClient]:
    with a_caller(forgetful, "admin") as client:
        yield client


def sent(backend: Backend, caller: TestClient, host: Host) -> UUID:
    """The record of an image that came over the API, while its name led to a public host."""
    receipt = taken_in(backend, caller, {"key": "rose", "image": host.url, "texts": ["red rose"]})
    assert (receipt["counts"]["embedded"], receipt["rejects"]) == (1, [])
    return item_id("shop", "rose")


def readers_that_get(backend: Backend, caller: TestClient, id: UUID) -> set[str]:
    """Which of the later readers of images get this one."""
    limits = backend.settings.limits
    with backend.stores() as stores, Workers(ColourEncoder().preparation, 0) as workers:
        with stores.sessions() as session:
            item, _ = catalog.items_with_digests(session, [id])[id]
        original, own = stored_image(backend, id), item.image
        assert original is not None
        assert own is not None
        got = {
            "API": caller.get(f"records/{id}/picture").status_code == 200,
            "console": original.read() is not None,
            "re-index": load_image(stores, own.sha256, own.origin, limits, or_origin=True) is not None,
            "training": StoredTrainingData(stores, workers, limits).images([own.sha256]) != [None],
            "near duplicates": near_duplicates(stores, limits).unreadable == 0,
        }
    return {name for name, whether in got.items() if whether}


def test_a_strangers_image_is_read_again_while_it_is_the_same(
    forgetful: Backend, caller: TestClient, host: Host
):
    id = sent(forgetful, caller, host)

    assert readers_that_get(forgetful, caller, id) == EVERY_READER


def test_a_strangers_name_that_leads_into_a_private_network_later_is_not_followed(
    forgetful: Backend, caller: TestClient, host: Host
):
    id = sent(forgetful, caller, host)
    host.leads_to, host.serves[PRIVATE] = PRIVATE, ROSE  # the same bytes, so that the address alone decides

    assert readers_that_get(forgetful, caller, id) == set()

    assert PRIVATE not in host.asked


def test_bytes_that_are_not_those_on_record_are_handed_to_nobody(
    forgetful: Backend, caller: TestClient, host: Host
):
    id = sent(forgetful, caller, host)
    host.serves[PUBLIC] = LEAF

    assert readers_that_get(forgetful, caller, id) == set()

    assert PUBLIC in host.asked[1:]


def test_a_repair_embeds_no_other_bytes(forgetful: Backend, caller: TestClient, host: Host):
    # a guard: of all readers, the repair alone has always compared the hash
    id = sent(forgetful, caller, host)
    host.serves[PUBLIC] = LEAF
    with forgetful.writing() as deps:
        [collection] = [one.name for one in deps.vectors.get_collections().collections]
        deps.vectors.delete(collection, [str(id)])

        mended = repair(deps, forgetful.settings, max_delete=1, yes=True)

    assert mended.after.counts["missing"] == 1
    assert any("is lost" in why for why in mended.unrepaired)


def test_a_gallery_shows_no_other_bytes(forgetful: Backend, caller: TestClient, host: Host):
    sent(forgetful, caller, host)
    with forgetful.searching() as deps:
        results = search(deps, Query("red"))
        before = gallery_page(deps, results, forgetful.settings.limits).cards[0].image
        host.serves[PUBLIC] = LEAF
        after = gallery_page(deps, results, forgetful.settings.limits).cards[0].image

    assert (before, after) == (ROSE, None)


def test_a_url_of_a_manifest_may_lead_into_a_private_network(
    forgetful: Backend, caller: TestClient, host: Host, tmp_path: Path
):
    host.leads_to, host.serves[PRIVATE] = PRIVATE, ROSE
    manifest = a_manifest(tmp_path / "shop.jsonl", [{"key": "rose", "image": host.url, "text": "red rose"}])
    with forgetful.writing() as deps:
        ingest_source(deps, forgetful.settings, Request(manifest, "shop"))

    assert readers_that_get(forgetful, caller, item_id("shop", "rose")) == EVERY_READER


def test_a_damaged_file_of_an_image_is_handed_to_nobody(backend: Backend, host: Host):
    with a_caller(backend, "admin") as caller:
        id = sent(backend, caller, host)
        [kept] = [one for one in Path(str(backend.settings.pictures_url)).rglob("*") if one.is_file()]
        kept.write_bytes(LEAF)

        answer = caller.get(f"records/{id}/picture")

    assert answer.status_code == 404


def test_what_was_sent_before_this_was_remembered_counts_as_a_strangers(migrated: Engine):
    def item(connection: Any, key: str, source: str, updated: str) -> None:
        connection.execute(
            text(
                "insert into items (id, source, key, texts, metadata, content_hash, record_hash,"
                " image_sha256, uri, updated) values (gen_random_uuid(), :source, :key, '[]', '{}', '', '',"
                " repeat('a', 64), 'http://h/a.png', cast(:updated as timestamptz))"
            ),
            {"key": key, "source": source, "updated": updated},
        )

    def run(connection: Any, flow: str, started: str, ended: str | None) -> None:
        connection.execute(
            text(
                "insert into runs (id, flow, source, outcome, counts, seconds, started, ended) values"
                " (:id, :flow, 'shop', :outcome, '{}', '{}', cast(:started as timestamptz),"
                " cast(:ended as timestamptz))"
            ),
            {
                "id": uuid4(),
                "flow": flow,
                "outcome": "completed" if ended else "running",
                "started": started,
                "ended": ended,
            },
        )

    with migrated.connect() as connection:
        connection.execute(text("create schema older"))
        connection.execute(text("set search_path to older"))
        migrate.upgrade(connection, "0005")
        run(connection, "api", "2026-01-01 10:00+00", "2026-01-01 10:05+00")
        run(connection, "ingest", "2026-01-01 11:00+00", "2026-01-01 11:05+00")
        run(connection, "api", "2026-01-01 12:00+00", None)
        item(connection, "sent", "shop", "2026-01-01 10:01+00")
        item(connection, "read", "shop", "2026-01-01 11:01+00")
        item(connection, "being sent", "shop", "2026-01-01 12:01+00")
        item(connection, "elsewhere", "photos", "2026-01-01 10:01+00")

        migrate.upgrade(connection)

        known = dict(connection.execute(text("select key, from_strangers from items")).tuples().all())
        connection.rollback()
    assert known == {"sent": True, "read": False, "being sent": True, "elsewhere": False}


def test_of_several_origins_of_an_image_our_own_is_read(forgetful: Backend, caller: TestClient, host: Host):
    sent(forgetful, caller, host)
    with forgetful.sessions() as sessions, sessions.begin() as session:
        session.execute(
            text(
                "insert into items (id, source, key, texts, metadata, content_hash, record_hash,"
                " image_sha256, uri) select gen_random_uuid(), 'photos', key, texts, metadata, '', '',"
                " image_sha256, '/photos/rose.png' from items"
            )
        )
        [sha256] = catalog.living_images(session)

        assert catalog.image_origins(session, [sha256]) == {sha256: Origin("/photos/rose.png")}
