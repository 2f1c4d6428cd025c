"""Several at once: ingests of different sources, of the same source, and searches in between."""

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from qdrant_client import QdrantClient
from sqlalchemy import event, text

from flows.config.settings import Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.resources.comparison import reconcile
from flows.resources.connections import Deps
from flows.search.query import Query, search
from storage.postgres.locks import Busy, exclusive_lock, source_lock
from storage.postgres.runs import RunClosed
from tests.support.builders import a_folder, a_manifest, png
from tests.support.fakes import ColourEncoder


@pytest.fixture
def vectors(served: QdrantClient) -> QdrantClient:
    return served


def test_sources_are_taken_in_side_by_side(deps: Deps, settings: Settings, tmp_path: Path):
    folders = [
        a_folder(tmp_path / f"shop {n}", {f"{k}.png": png("red", (16 + n, 16 + k)) for k in range(20)})
        for n in range(4)
    ]

    with ThreadPoolExecutor(4) as pool:
        own = [replace(deps, encoder=ColourEncoder()) for _ in folders]
        reports = list(pool.map(lambda d, f: ingest_source(d, settings, Request(f)), own, folders))

    assert [report.embedded for report in reports] == [20] * 4
    assert deps.vectors.count("items").count == 80
    assert reconcile(deps).work == 0


def test_of_two_ingests_of_one_source_the_second_is_refused_and_nothing_is_interleaved(
    deps: Deps, settings: Settings, tmp_path: Path
):
    folder = a_folder(tmp_path / "shop", {f"{n}.png": png("red", (16, 16 + n)) for n in range(6)})
    refused: list[str] = []

    def meanwhile(*_: object) -> None:
        with pytest.raises(Busy, match="'shop' is being written by another run") as error:
            ingest_source(deps, settings, Request(folder))
        refused.append(str(error.value))

    ingest_source(deps, settings, Request(folder), progress=meanwhile)

    assert len(refused) == 2
    assert deps.vectors.count("items").count == 6


def test_a_run_that_lost_its_lock_to_another_writes_nothing_more(
    deps: Deps, settings: Settings, tmp_path: Path
):
    folder = a_folder(tmp_path / "shop", {f"{n}.png": png("red", (16, 16 + n)) for n in range(60)})
    lost: list[int] = []

    def take_the_lock() -> None:
        with deps.sessions.begin() as session:
            session.execute(
                text(
                    "select pg_terminate_backend(pid, 10000) from pg_locks"
                    " where locktype = 'advisory' and pid != pg_backend_pid()"
                )
            )
        ingest_source(replace(deps, encoder=ColourEncoder()), settings, Request(folder))

    def lose_the_lock_to_another(_stage: str, done: int, _total: int) -> None:
        lost.append(done)
        while len(lost) == 1:
            with suppress(Busy):  # a thread of the first run was quicker, and has it again
                take_the_lock()
                return

    with pytest.raises((RunClosed, Busy)):  # Busy: a thread of the first run asked during the other run
        ingest_source(deps, settings, Request(folder), progress=lose_the_lock_to_another)

    assert reconcile(deps).work == 0
    with deps.sessions() as session:
        outcomes = list(session.scalars(text("select outcome from runs order by started")))
    assert outcomes == ["failed", "completed"]


def test_a_lock_that_was_lost_to_nobody_is_taken_again(deps: Deps):
    with source_lock(deps.engine, "shop") as lock:
        with deps.sessions.begin() as session:
            session.execute(
                text("select pg_terminate_backend(pid, 10000) from pg_locks where locktype = 'advisory'")
            )

        lock.ensure()

        with pytest.raises(Busy), exclusive_lock(deps.engine):
            pass


def test_a_lock_is_taken_again_from_a_session_whose_server_does_not_know_that_it_is_lost(deps: Deps):
    with_lock: list[psycopg.Connection[Any]] = []
    event.listen(deps.engine, "checkout", lambda connection, *_: with_lock.append(connection), once=True)
    with source_lock(deps.engine, "shop") as lock:
        ours = with_lock[0].pgconn.socket
        one, other = socket.socketpair()
        with socket.socket(fileno=os.dup(ours)), one, other:
            os.dup2(one.fileno(), ours)
            other.shutdown(socket.SHUT_RDWR)

            lock.ensure()

            with pytest.raises(Busy), exclusive_lock(deps.engine):
                pass


def test_a_search_during_an_ingest_never_fails_and_never_shows_half_a_record(
    deps: Deps, settings: Settings, tmp_path: Path
):
    """Each version of a record has its number in all its texts and in its metadata."""
    manifest = tmp_path / "notes.jsonl"

    def write(version: int) -> Path:
        texts = [f"red {version}", f"green {version}"][: 1 + version % 2]
        rows = [{"key": f"{n}", "texts": [*texts, f"blue {version}"], "version": version} for n in range(12)]
        return a_manifest(manifest, rows)

    ingest_source(deps, settings, Request(write(0)))
    torn, searches, over = [], 0, threading.Event()

    def keep_searching() -> None:
        nonlocal searches
        own = replace(deps, encoder=ColourEncoder())
        while not over.is_set():
            for found in search(own, Query(text="blue", find="texts", limit=50)).found:
                version = found.item.metadata["version"]
                if not found.text.endswith(f" {version}"):
                    torn.append((found.text, version))
            searches += 1

    with ThreadPoolExecutor(1) as pool:
        searching = pool.submit(keep_searching)
        try:
            for version in range(1, 8):
                ingest_source(deps, settings, Request(write(version)))
        finally:
            over.set()
        searching.result()

    assert searches > 20
    assert torn == []
