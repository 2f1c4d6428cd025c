"""Every statement ends in time: slow query, lock, or lost network."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from flows.tracking.retry_policy import is_transient
from storage.postgres.engine import address_of, open_engine
from storage.postgres.locks import Busy, source_lock
from tests.faults.proxy import Proxy, a_proxy, to_postgres

LIMIT_S = 0.4


@pytest.fixture
def proxy(engine: Engine) -> Iterator[Proxy]:
    with a_proxy(to_postgres(engine)) as proxy:
        yield proxy


@pytest.fixture
def limited(engine: Engine, proxy: Proxy) -> Iterator[Engine]:
    url = engine.url.set(host="127.0.0.1", port=proxy.port, query={})
    limited = open_engine(url.render_as_string(hide_password=False), timeout_s=LIMIT_S)
    yield limited
    limited.dispose()


def test_a_slow_statement_is_ended_by_the_server_which_says_so(limited: Engine):
    with (
        pytest.raises(OperationalError, match="statement timeout") as failed,
        limited.connect() as connection,
    ):
        connection.execute(text("select pg_sleep(60)"))

    assert is_transient(failed.value)


def test_a_statement_that_waits_for_a_lock_is_ended(limited: Engine, engine: Engine):
    with engine.begin() as other, limited.connect() as connection:
        other.execute(text("lock table runs in access exclusive mode"))

        with pytest.raises(OperationalError, match="timeout"):
            connection.execute(text("select count(*) from runs"))


def test_a_network_that_goes_silent_is_given_up_and_the_next_statement_gets_another_connection(
    limited: Engine, proxy: Proxy
):
    with limited.connect() as connection:
        connection.scalar(text("select 1"))
        proxy.break_after(0, "stall", for_s=2 * LIMIT_S)

        with pytest.raises(OperationalError, match="no answer within") as failed:
            connection.scalar(text("select 2"))

    assert is_transient(failed.value)
    proxy.break_after(10**9, "stall", for_s=0)
    with limited.connect() as connection:
        assert connection.scalar(text("select 3")) == 3


def test_a_limit_in_the_url_wins(engine: Engine):
    url = engine.url.update_query_dict({"options": "-c statement_timeout=12345"})
    own = open_engine(url.render_as_string(hide_password=False), timeout_s=LIMIT_S)
    with own.connect() as connection:
        assert connection.scalar(text("show statement_timeout")) == "12345ms"
        assert connection.scalar(text("show lock_timeout")) == "400ms"
    own.dispose()


def test_an_address_names_the_server_and_no_password():
    engine = open_engine("postgresql+psycopg://me:secret@db.example:5433/shop", timeout_s=1)

    assert address_of(engine) == "db.example:5433/shop"


def test_a_lock_holds_through_a_tcp_proxy(limited: Engine, engine: Engine):
    with source_lock(limited, "shop") as lock:
        lock.ensure()
        with pytest.raises(Busy), source_lock(engine, "shop"):
            pass
