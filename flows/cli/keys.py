"""Commands that make, list and revoke the keys of the API."""

from datetime import timedelta
from typing import Literal

import click

from flows.cli.options import as_json_option, print_out
from flows.config.settings import load_settings


@click.group(short_help="Make, list and revoke keys of the API.")
def keys() -> None:
    """Make, list and revoke the keys that the API and MCP over HTTP ask for."""


@keys.command("create", short_help="Make a key, and print it once.")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(["read", "write", "admin"]),
    multiple=True,
    required=True,
    help="What it may do; may be repeated. write has no read in it, admin has all.",
)
@click.option("--days", type=click.IntRange(min=1), help="It ends after so many.  [default: never]")
@as_json_option
def create_key(
    name: str, scopes: "tuple[Literal['read', 'write', 'admin'], ...]", days: int | None, as_json: bool
) -> None:
    """Make a key called NAME, and print it: it cannot be shown again, for only its hash is kept.

    read searches and looks, write sends and deletes records, admin does everything and alone deletes whole
    sources.
    """
    settings = load_settings()
    from sqlalchemy.orm import Session

    from flows.cli.tables.servers import of_new_key
    from flows.resources.connections import open_catalog
    from storage.postgres.api_keys import create

    with open_catalog(settings) as engine, Session(engine) as session, session.begin():
        key, made = create(session, name, scopes, lasts=None if days is None else timedelta(days=days))
    print_out({"key": key} | made.as_json(), as_json, lambda: of_new_key(key, made))


@keys.command("list", short_help="List keys: what they may do, and when they were last used.")
@as_json_option
def list_keys(as_json: bool) -> None:
    """List all keys, those in use first; when one was last used is known to the minute."""
    settings = load_settings()
    from sqlalchemy.orm import Session

    from flows.cli.tables.servers import of_keys
    from flows.resources.connections import open_catalog
    from storage.postgres import api_keys

    with open_catalog(settings) as engine, Session(engine) as session:
        found = api_keys.list_keys(session)
    print_out({"keys": [one.as_json() for one in found]}, as_json, lambda: of_keys(found))


@keys.command("revoke", short_help="Make a key useless, at once.")
@click.argument("name")
def revoke_key(name: str) -> None:
    """Make the key called NAME useless, at once; what was accepted from it is still carried out."""
    settings = load_settings()
    from sqlalchemy.orm import Session

    from flows.resources.connections import open_catalog
    from storage.postgres.api_keys import revoke

    with open_catalog(settings) as engine, Session(engine) as session, session.begin():
        revoke(session, name)
    click.echo(f"{name} is revoked.")
