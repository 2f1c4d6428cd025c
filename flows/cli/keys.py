"""Create, list and revoke API keys."""

from datetime import timedelta
from typing import Literal

import click

from flows.cli.options import as_json_option, existing_settings, print_out
from flows.config.settings import load_settings


@click.group(short_help="Create, list and revoke API keys.")
def keys() -> None:
    """Create, list and revoke keys of the API and of MCP."""


@keys.command("create", short_help="Create a key and print it once.")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(["read", "write", "admin"]),
    multiple=True,
    required=True,
    help="Permission of the key; may be repeated. write does not include read, admin includes all.",
)
@click.option("--days", type=click.IntRange(min=1), help="Days until the key expires.  [default: never]")
@as_json_option
def create_key(
    name: str, scopes: "tuple[Literal['read', 'write', 'admin'], ...]", days: int | None, as_json: bool
) -> None:
    """Create a key called NAME and print it once.

    Only its hash is kept.

    read searches and reads records, write sends and deletes records, admin does everything and alone deletes
    whole sources.
    """
    settings = load_settings()
    from sqlalchemy.orm import Session

    from flows.cli.tables.servers import of_new_key
    from flows.resources.connections import open_catalog
    from storage.postgres.api_keys import create

    with open_catalog(settings) as engine, Session(engine) as session, session.begin():
        key, made = create(session, name, scopes, lasts=None if days is None else timedelta(days=days))
    print_out({"key": key} | made.as_json(), as_json, lambda: of_new_key(key, made))


@keys.command("list", short_help="List keys with their scopes and their last use.")
@as_json_option
def list_keys(as_json: bool) -> None:
    """List all keys, active ones first."""
    settings = existing_settings(index=False)
    from sqlalchemy.orm import Session

    from flows.cli.tables.servers import of_keys
    from flows.resources.connections import open_catalog
    from storage.postgres import api_keys

    with open_catalog(settings) as engine, Session(engine) as session:
        found = api_keys.list_keys(session)
    print_out({"keys": [one.as_json() for one in found]}, as_json, lambda: of_keys(found))


@keys.command("revoke", short_help="Revoke a key at once.")
@click.argument("name")
def revoke_key(name: str) -> None:
    """Revoke the key called NAME at once.

    Requests that were accepted from it are still carried out.
    """
    settings = existing_settings(index=False)
    from sqlalchemy.orm import Session

    from flows.resources.connections import open_catalog
    from storage.postgres.api_keys import revoke

    with open_catalog(settings) as engine, Session(engine) as session, session.begin():
        revoke(session, name)
    click.echo(f"{name} is revoked.")
