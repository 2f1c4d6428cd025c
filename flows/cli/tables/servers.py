"""Format schedules, addresses and API keys as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flows.cli.tables.format import table_of
from storage.postgres.api_keys import Key

if TYPE_CHECKING:  # a command need not wait for what it does not use
    from flows.cli.supervisor import Running
    from flows.orchestration.schedule import ServedFlows


def of_served(served: ServedFlows) -> RenderableType:
    """Return the schedules and the address of Prefect's pages."""
    watch = Text(f"watch them, pause them or start one by hand at {served.ui}")
    return Group(_of_planned(served), Text(""), watch, *_of_password(served))


def of_running(running: Running) -> RenderableType:
    """Return the addresses and the schedules."""
    table = table_of("part", "address")
    for name, address in (*running.addresses().items(), ("Prefect", running.served.ui)):
        table.add_row(name, Text(address))
    end = Text("Ctrl-C ends all of it.")
    return Group(table, *_of_password(running.served), Text(""), _of_planned(running.served), Text(""), end)


def _of_password(served: ServedFlows) -> list[Text]:
    """Return the path of the password of Prefect's pages."""
    if served.password_file is None:
        return []
    return [Text(f"Prefect's pages ask for a password: the line in {served.password_file}")]


def _of_planned(served: ServedFlows) -> Table:
    table = table_of("flow", "cron, UTC", "next run, UTC")
    for one in served.planned:
        when = "" if one.next is None else f"{one.next:%Y-%m-%d %H:%M}"
        table.add_row(one.flow, one.cron or "off", "paused" if one.paused else when)
    return table


def of_new_key(key: str, made: Key) -> RenderableType:
    """Return a new key; it is shown once."""
    ends = "" if made.expires is None else f", until {made.expires.astimezone():%Y-%m-%d %H:%M}"
    about = f"{made.name} may {' and '.join(made.scopes)}{ends}; this is shown once:"
    return Group(Text(about), Text(key))


def of_keys(keys: Sequence[Key]) -> RenderableType:
    """Return all keys with their scopes and dates."""
    if not keys:
        return Text("No keys yet; run: sightline keys create NAME --scope read")
    table = table_of("name", "scopes", "created", "last used", "expires", "")
    for key in keys:
        moments = (
            "" if moment is None else f"{moment.astimezone():%Y-%m-%d %H:%M}"
            for moment in (key.created, key.used, key.expires)
        )
        revoked = "" if key.revoked is None else f"revoked {key.revoked.astimezone():%Y-%m-%d %H:%M}"
        table.add_row(Text(key.name), ", ".join(key.scopes), *moments, revoked)
    return table
