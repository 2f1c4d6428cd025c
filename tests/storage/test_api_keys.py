"""API keys: created, shown once, and invalid once revoked."""

import json
from collections.abc import Iterator
from datetime import timedelta

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from flows.cli import main
from storage.postgres import api_keys
from storage.postgres.api_keys import KeyExists, NoSuchKey, Scope


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """Yield a session and roll its transaction back after the test."""
    with Session(engine) as session:
        yield session


def sightline(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_a_key_is_found_by_itself_and_by_nothing_else(session: Session):
    key, made = api_keys.create(session, "shop", ["write", "read", "read"])
    api_keys.create(session, "other", ["read"])

    assert api_keys.find(session, key) == made
    assert made.scopes == ("read", "write")
    for wrong in (key[:-1], key + "a", key.upper(), "sl_", ""):
        assert api_keys.find(session, wrong) is None


@pytest.mark.parametrize(
    ("scopes", "may"),
    [(["read"], {"read"}), (["write"], {"write"}), (["admin"], {"read", "write", "admin"})],
)
def test_admin_may_everything_and_write_may_not_read(session: Session, scopes: list[Scope], may: set[str]):
    _, made = api_keys.create(session, "shop", scopes)

    assert {scope for scope in ("read", "write", "admin") if made.may(scope)} == may


def test_a_key_ends_when_it_is_revoked_or_its_time_is_over(session: Session):
    revoked, _ = api_keys.create(session, "revoked", ["read"])
    over, _ = api_keys.create(session, "over", ["read"], lasts=timedelta(0))
    lasting, _ = api_keys.create(session, "lasting", ["read"], lasts=timedelta(days=1))

    api_keys.revoke(session, "revoked")

    assert api_keys.find(session, revoked) is None
    assert api_keys.find(session, over) is None
    assert api_keys.find(session, lasting) is not None


def test_a_name_is_free_again_once_its_key_is_revoked(session: Session):
    api_keys.create(session, "shop", ["read"])
    with pytest.raises(KeyExists, match="'shop' is in use"):
        api_keys.create(session, "shop", ["read"])

    api_keys.revoke(session, "shop")

    assert api_keys.create(session, "shop", ["write"])
    assert [one.revoked is None for one in api_keys.list_keys(session)] == [True, False]
    api_keys.revoke(session, "shop")
    with pytest.raises(NoSuchKey, match="no key named 'shop'"):
        api_keys.revoke(session, "shop")


def test_the_last_use_is_written_once_a_minute(session: Session):
    key, _ = api_keys.create(session, "shop", ["read"])
    api_keys.find(session, key)
    session.execute(text("update keys set used = now() - interval '30 seconds'"))
    [before] = api_keys.list_keys(session)

    session.expire_all()
    api_keys.find(session, key)
    [soon] = api_keys.list_keys(session)
    session.execute(text("update keys set used = now() - interval '2 minutes'"))
    api_keys.find(session, key)
    session.expire_all()
    [later] = api_keys.list_keys(session)

    assert soon.used == before.used
    assert later.used is not None
    assert before.used is not None
    assert later.used > before.used


@pytest.mark.parametrize("scopes", ["{}", "{read,root}"])
def test_the_database_takes_no_unknown_scope(session: Session, scopes: str):
    row = "insert into keys (id, name, sha256, scopes) values (gen_random_uuid(), 'a', 'b', :scopes)"
    with pytest.raises(IntegrityError, match="scopes_are_known"):
        session.execute(text(row), {"scopes": scopes})


def test_the_commands_make_list_and_revoke_keys(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    url = engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("SIGHTLINE_DATABASE_URL", url)

    made = sightline("keys", "create", "shop", "--scope", "read", "--scope", "write", "--days", "90")
    key = made.stdout.strip().splitlines()[-1]
    again = sightline("keys", "create", "shop", "--scope", "read")
    listed = json.loads(sightline("keys", "list", "--json").stdout)["keys"]
    table = sightline("keys", "list").stdout

    with Session(engine) as session:
        assert api_keys.find(session, key) is not None
    assert (again.exit_code, "is in use" in again.stderr) == (1, True)
    assert [(one["name"], one["scopes"]) for one in listed] == [("shop", ["read", "write"])]
    assert listed[0]["expires"] is not None
    assert "shop" in table
    assert key not in table
    assert sightline("keys", "revoke", "shop").stdout == "shop is revoked.\n"
    assert "revoked" in sightline("keys", "list").stdout
    with Session(engine) as session:
        assert api_keys.find(session, key) is None
    assert sightline("keys", "revoke", "shop").exit_code == 1
