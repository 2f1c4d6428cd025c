"""Format the status as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flows.cli.tables.format import busy_line, table_of
from flows.ingestion.report import as_sentences
from flows.ingestion.throughput import Throughput
from storage.embedded.server_info import Server
from storage.postgres.runs import Run
from storage.qdrant import Collection

if TYPE_CHECKING:  # a command need not wait for what it does not use
    from flows.service.status import Status


SHORT_ID = 8
"""Digits of an id that tell the runs of a data directory apart."""

RUN_COUNTS = ("read", "embedded", "rejected", "deleted")


def of_status(status: Status) -> RenderableType:
    """Return the stored items, the open rejects and the last runs."""
    about = table_of("", "")
    about.show_header = False
    items = status.items
    about.add_row("data directory", Text(status.home))
    about.add_row("items", f"{items['items']:,} in {items['sources']:,} sources")
    about.add_row("", f"{items['with_picture']:,} with an image, {items['with_text']:,} with texts")
    if status.shared_pictures:
        about.add_row("", f"{status.sharing_items:,} items share {status.shared_pictures:,} images")
    if status.collection_problem:
        about.add_row("collection", Text(status.collection_problem))
    elif status.collection is None:
        about.add_row("collection", "none yet; run: sightline ingest SOURCE")
    else:
        own = status.collection
        about.add_row("collection", f"{own.name}: {status.collection_points:,} points of {_dimensions(own)}")
        about.add_row(
            "model", Text(own.model + ("" if own.model == status.model else f" (set: {status.model})"))
        )
    open_rejects = ", ".join(f"{count:,} {reason}" for reason, count in status.rejects.items())
    about.add_row("rejects", open_rejects or "none open")
    runs = table_of("started", "flow", "source", "outcome", *RUN_COUNTS, "seconds")
    for column in runs.columns[4:]:
        column.justify = "right"
    for run in status.runs:
        counts = (f"{run.counts[name]:,}" if name in run.counts else "" for name in RUN_COUNTS)
        seconds = run.seconds.get("total")
        runs.add_row(
            f"{run.started.astimezone():%Y-%m-%d %H:%M:%S}",
            run.flow,
            Text(run.source or ""),
            run.outcome,
            *counts,
            "" if seconds is None else f"{seconds:.1f}",
        )
    tables: list[RenderableType] = [
        about,
        *([_of_servers(status.servers)] if status.servers else []),
        *([runs] if status.runs else []),
        *([_of_failed(status.failed)] if status.failed else []),
        *([_of_speed(status.last_ingest)] if status.last_ingest else []),
    ]
    return Group(*[part for one in tables for part in (one, Text(""))][:-1])


def _dimensions(collection: Collection) -> str:
    short = "" if collection.short_dim is None else f", first stage over {collection.short_dim}"
    quantized = "" if collection.quantization == "none" else f", quantized as {collection.quantization}"
    return f"{collection.dim} dimensions{short}{quantized}"


def _of_speed(run: Run) -> RenderableType:
    """Return the throughput of the last ingest and its bottleneck."""
    speed = Throughput(**run.counts["speed"])
    rates, advice = as_sentences(speed)
    return Group(*(Text(line) for line in (f"last ingest: {rates}", busy_line(speed.busy), advice)))


def _of_failed(failed: Sequence[Run]) -> RenderableType:
    """Return the failed runs, each with its reason on one line."""
    table = table_of("run", "failed", "flow", "source", "outcome", "why")
    for run in failed:
        ended = "" if run.ended is None else f"{run.ended.astimezone():%Y-%m-%d %H:%M:%S}"
        why = (run.error or "its process ended without a message").strip().splitlines()[0]
        table.add_row(str(run.id)[:SHORT_ID], ended, run.flow, Text(run.source or ""), run.outcome, Text(why))
    return Group(table, Text("noted? run: sightline runs acknowledge RUN, or --all"))


def _of_servers(servers: Sequence[Server]) -> Table:
    table = table_of("server", "address", "process", "points", "on disk", "since")
    for column in table.columns[2:5]:
        column.justify = "right"
    for server in servers:
        since = f"{server.since.astimezone():%Y-%m-%d %H:%M:%S}"
        size = f"{server.bytes / 1024**2:,.1f} MiB"
        points = "" if server.points is None else f"{server.points:,}"
        table.add_row(server.name, Text(server.address), str(server.pid), points, size, since)
    return table
