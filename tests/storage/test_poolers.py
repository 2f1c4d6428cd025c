"""Reads work through a pooler; locks work if it keeps the session."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import sessionmaker

import storage.postgres.locks
from flows.config.settings import Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.maintenance.delete import delete_items
from flows.resources.comparison import reconcile
from flows.resources.connections import Deps
from flows.search.query import Query, search
from storage.postgres import migrate
from storage.postgres.catalog import Selection
from storage.postgres.engine import UnknownOption, open_engine
from storage.postgres.locks import Busy, UnstableSession, collection_lock, exclusive_lock, source_lock
from tests.support.builders import a_folder, png
from tests.support.servers import a_pgbouncer

LIMIT_S = 0.4
Pooled = Callable[..., Engine]
REFUSING: dict[str, object] = {}
DROPPING: dict[str, object] = {"ignore_startup_parameters": "options"}

ARRANGEMENTS: dict[str, dict[str, object]] = {
    "one session": {"default_pool_size": 1},
    "many": {"default_pool_size": 20},
    "many in turn": {"default_pool_size": 20, "server_round_robin": 1},
    "many, emptied after each transaction": {"default_pool_size": 20, "server_reset_query_always": 1},
}


@pytest.fixture
def pooled(
    engine: Engine,  # noqa: ARG001 (what stands behind the pooler)
    postgres_home: Path,
    tmp_path: Path,
) -> Iterator[Pooled]:
    """Start a PgBouncer before the tests' Postgres; return its engine."""
    with ExitStack() as stack:

        def start(pool_mode: str, *, timeout_s: float = 60, options: str = "", **more: object) -> Engine:
            folder = tmp_path / "pgbouncer"
            folder.mkdir()
            url = stack.enter_context(a_pgbouncer(folder, postgres_home, pool_mode=pool_mode, **more))
            url = url.update_query_dict({"options": options} if options else {})
            through = open_engine(url.render_as_string(hide_password=False), timeout_s=timeout_s)
            stack.callback(through.dispose)
            return through

        yield start


@contextmanager
def busy(engine: Engine, clients: int) -> Iterator[None]:
    """Have so many clients run short transactions one after the other."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            with engine.begin() as connection:
                connection.execute(text("select count(*) from items"))

    with ThreadPoolExecutor(clients) as pool:
        working = [pool.submit(work) for _ in range(clients)]
        try:
            yield
        finally:
            over.set()
        for one in working:
            one.result()


def locks_left(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(text("select count(*) from pg_locks where locktype = 'advisory'")) or 0)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_a_lock_is_refused_where_a_pooler_changes_sessions_and_the_remedy_is_named(
    pooled: Pooled, engine: Engine, arrangement: str
):
    through = pooled("transaction", **ARRANGEMENTS[arrangement])

    with pytest.raises(
        UnstableSession, match=r"pooler at 127\.0\.0\.1:.* to Postgres itself, or set pool_mode"
    ):
        source_lock(through, "shop").ensure()
    with pytest.raises(UnstableSession), exclusive_lock(through):
        pass
    with pytest.raises(UnstableSession), collection_lock(through):
        pass

    assert locks_left(engine) == 0


@pytest.mark.parametrize("sessions", [2, 20])
def test_a_lock_is_refused_where_other_clients_keep_a_pooler_busy(pooled: Pooled, sessions: int):
    through = pooled("transaction", default_pool_size=sessions)

    with busy(through, clients=6):
        for _ in range(10):
            with pytest.raises(UnstableSession):
                source_lock(through, "shop").ensure()


def test_an_ingest_through_a_pooler_that_changes_sessions_writes_nothing(
    pooled: Pooled, deps: Deps, settings: Settings, tmp_path: Path
):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red")})

    with pytest.raises(UnstableSession):
        ingest_source(through_pooler(deps, pooled("transaction")), settings, Request(folder))

    assert deps.vectors.get_collections().collections == []
    with deps.sessions() as session:
        assert session.scalar(text("select count(*) from items")) == 0


def through_pooler(deps: Deps, through: Engine) -> Deps:
    return replace(deps, engine=through, sessions=sessionmaker(through))


def test_a_lock_whose_session_was_changed_is_refused_when_it_is_next_needed(
    pooled: Pooled, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        storage.postgres.locks, "ROUNDS", 0
    )  # the pooler kept the session while it was looked at
    through = pooled("transaction")
    lock = source_lock(through, "shop")
    lock.ensure()
    lock.ensure()

    with through.begin() as other:
        other.scalar(text("select 1"))
        with pytest.raises(UnstableSession):
            lock.ensure()

    lock.release()


def test_a_lock_that_was_given_back_behind_our_back_is_refused_when_it_is_next_needed(
    pooled: Pooled, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(storage.postgres.locks, "ROUNDS", 0)
    lock = source_lock(pooled("transaction", server_reset_query_always=1), "shop")
    lock.ensure()

    with pytest.raises(UnstableSession):
        lock.ensure()


@pytest.mark.parametrize("start_up", [REFUSING, DROPPING])
def test_locks_hold_through_a_pooler_that_keeps_the_session(
    pooled: Pooled, engine: Engine, start_up: dict[str, object]
):
    through = pooled("session", **start_up)

    with source_lock(through, "shop") as lock:
        lock.ensure()
        for other in (through, engine):
            with pytest.raises(Busy), source_lock(other, "shop"):
                pass
            with source_lock(other, "another"):
                pass
        with collection_lock(through):
            lock.ensure()

    assert locks_left(engine) == 0


def test_all_work_is_done_through_a_pooler_that_keeps_the_session(
    pooled: Pooled, deps: Deps, settings: Settings, tmp_path: Path
):
    deps = through_pooler(deps, pooled("session"))
    folder = a_folder(tmp_path / "shop", {f"{n}.png": png("red", (16, 16 + n)) for n in range(9)})

    report = ingest_source(deps, settings, Request(folder))
    found = search(deps, Query(text="red")).found
    compared = reconcile(deps)
    receipt = delete_items(deps, Selection(source="shop"), tmp_path, for_s=0)

    assert (report.embedded, len(found), compared.work, receipt.items) == (9, 9, 0, 9)


def test_searches_and_comparisons_work_through_a_pooler_that_changes_sessions(
    pooled: Pooled, deps: Deps, settings: Settings, tmp_path: Path
):
    folder = a_folder(tmp_path / "shop", {f"{n}.png": png("red", (16, 16 + n)) for n in range(9)})
    ingest_source(deps, settings, Request(folder))
    through = through_pooler(deps, pooled("transaction", default_pool_size=3))

    with busy(through.engine, clients=4):
        found = [len(search(through, Query(text="red")).found) for _ in range(30)]
        compared = reconcile(through)

    assert found == [9] * 30
    assert (compared.items, compared.work) == (9, 0)


@pytest.mark.parametrize("pool_mode", ["transaction", "session"])
def test_an_empty_database_is_migrated_through_a_pooler(pooled: Pooled, engine: Engine, pool_mode: str):
    own = engine.execution_options(isolation_level="AUTOCOMMIT")
    with own.connect() as connection:
        connection.execute(text("create database fresh"))
    through = pooled(pool_mode)
    fresh = open_engine(through.url.set(database="fresh").render_as_string(hide_password=False), timeout_s=60)

    def upgrade(_: int) -> None:
        with fresh.begin() as connection:
            migrate.upgrade(connection)

    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(upgrade, range(2)))
        with fresh.connect() as connection, engine.connect() as migrated:
            assert migrate.revision_of(connection) == migrate.revision_of(migrated)
    finally:
        fresh.dispose()
        with own.connect() as connection:
            connection.execute(text("drop database fresh with (force)"))


@pytest.mark.parametrize("pool_mode", ["transaction", "session"])
@pytest.mark.parametrize("start_up", [REFUSING, DROPPING], ids=["refused", "dropped"])
def test_limits_hold_where_a_pooler_does_not_take_them_as_options(
    pooled: Pooled, engine: Engine, pool_mode: str, start_up: dict[str, object]
):
    through = pooled(pool_mode, timeout_s=LIMIT_S, **start_up)

    with pytest.raises(OperationalError, match="statement timeout"), through.begin() as connection:
        connection.execute(text("select pg_sleep(60)"))
    with engine.begin() as other, through.connect() as connection:
        other.execute(text("lock table runs in access exclusive mode"))
        with pytest.raises(OperationalError, match="timeout"):
            connection.execute(text("select count(*) from runs"))
    with through.connect() as connection:
        for _ in range(2):
            assert connection.scalar(text("show idle_in_transaction_session_timeout")) == "10min"
            assert connection.scalar(text("show lock_timeout")) == "400ms"
            connection.commit()


@pytest.mark.parametrize("start_up", [REFUSING, DROPPING], ids=["refused", "dropped"])
def test_an_option_of_the_url_holds_through_a_pooler(pooled: Pooled, start_up: dict[str, object]):
    options = "-c statement_timeout=12345 --work-mem=1MB"
    through = pooled("transaction", timeout_s=LIMIT_S, options=options, **start_up)

    with through.connect() as connection:
        assert connection.scalar(text("show statement_timeout")) == "12345ms"
        assert connection.scalar(text("show lock_timeout")) == "400ms"
        assert connection.scalar(text("show work_mem")) == "1MB"


def test_an_option_that_no_statement_can_set_is_refused_by_name(pooled: Pooled):
    through = pooled("transaction", options="-c work_mem=1MB -e")

    with pytest.raises(UnknownOption, match="-e of the URL's options"):
        through.connect()


def test_a_direct_connection_sends_no_statement_of_ours_before_the_callers(engine: Engine):
    direct = open_engine(engine.url.render_as_string(hide_password=False), timeout_s=LIMIT_S)
    sent: list[str] = []
    event.listen(direct, "before_cursor_execute", lambda _c, _cursor, statement, *_: sent.append(statement))

    for _ in range(2):
        with direct.begin() as connection:
            connection.execute(text("select 1"))

    assert sent == ["select 1"] * 2
    direct.dispose()
