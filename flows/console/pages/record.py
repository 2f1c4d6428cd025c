"""Show one record: image, texts, metadata, searchability, and duplicates."""

import json
from asyncio import to_thread
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

from nicegui import ui
from starlette.requests import Request

from embedding.images.perceptual_hash import MAX_DISTANCE, MIN_BITS
from flows.console.components.hit_cards import image
from flows.console.components.search_params import SearchParams
from flows.console.context import ConsoleContext
from flows.console.format import ago
from flows.console.layout import PATIENCE_S, frame
from flows.console.widgets import Row, heading, note, problem, table
from flows.service.pool import Backend
from flows.tracking.text import count_of
from storage.errors import StoreUnavailable
from storage.postgres import model_registry, perceptual_hashes
from storage.postgres.item_view import Details, details
from storage.postgres.perceptual_hashes import Copy
from storage.records import Item
from storage.redaction import redacted

MOST_COPIES = 24


@dataclass(frozen=True, slots=True)
class RecordSnapshot:
    """Hold a record, the active collection, and the record's duplicates."""

    collection: str | None
    details: Details | None
    copies: Sequence[Copy] | None
    """Records with the same or a near-duplicate image; None where the image has no perceptual hash yet."""


def add_page(context: ConsoleContext) -> None:
    """Add the page at `/records/{id}`."""

    @ui.page("/records/{id}", response_timeout=PATIENCE_S)
    async def record_page(request: Request, id: str) -> None:
        try:
            known = UUID(id)
            seen = await to_thread(read_record, context.backend, known)
        except (ValueError, StoreUnavailable) as error:
            with frame(context, request, "Record"):
                problem(f"{id!r} is no record's id" if isinstance(error, ValueError) else str(error))
            return
        with frame(context, request, "Record"):
            show(known, seen, datetime.now(UTC))


def read_record(backend: Backend, id: UUID) -> RecordSnapshot:
    """Read a record from Postgres.

    Raises:
        StoreUnavailable: it does not answer.
    """
    with backend.sessions() as sessions, sessions() as session:
        collection = model_registry.active_collection(session)
        found = details(session, id, collection)
        item = None if found is None else found.item
        if item is None or item.image is None:
            return RecordSnapshot(collection, found, ())
        sha256 = item.image.sha256
        copies = perceptual_hashes.near(
            session, sha256, bits=MAX_DISTANCE, least_bits=MIN_BITS, limit=MOST_COPIES
        )
    return RecordSnapshot(
        collection, found, None if copies is None else [one for one in copies if one.id != id]
    )


def show(id: UUID, seen: RecordSnapshot, now: datetime) -> None:
    """Show a record."""
    found = seen.details
    if found is None:
        problem(f"There is no record {id}, and there never was one here.")
        return
    ui.label(found.key).props("role=heading aria-level=1 dir=auto").classes("sl-title")
    if found.item is None:
        why = "by request" if found.deletion == "asked" else "because its source no longer contains it"
        note(f"This record of {found.source} was deleted {ago(found.deleted, now)}, {why}.")
        return
    item = found.item
    with ui.element("div").classes("sl-row"):
        if item.image is not None:
            ui.link("Images like this", SearchParams(like=id).address)
            ui.link("Texts like this", SearchParams(like=id, find="texts").address)
        elif item.embedded_texts:
            ui.link("Texts like this", SearchParams(like=id, find="texts").address)
            ui.link("Images like this", SearchParams(like=id).address)
    with ui.element("div").classes("sl-two"):
        with ui.element("div").classes("sl-column"):
            if item.image is not None:
                with ui.element("div").classes("sl-sheet sl-plate"):
                    image(f"/pictures/{id}?v={item.image.sha256[:12]}", item.short_text or item.key)
            _texts(item)
        with ui.element("div").classes("sl-column"):
            _facts(id, found, item, seen.collection, now)
            if item.metadata:
                _metadata(item.metadata)
    if item.image is not None:
        _copies(seen.copies, item.image.sha256)


def searchable(found: Details, collection: str | None) -> str:
    """Return whether searches find the current version of a record."""
    if collection is None:
        return "no: there is no collection yet"
    if found.embedded is None:
        return "not yet: the next ingest of its source embeds it"
    if not found.is_current:
        return "as it was before it changed; the next ingest of its source embeds it anew"
    return f"yes, in {collection}"


def _texts(item: Item) -> None:
    with ui.element("section").classes("sl-sheet"):
        heading("Texts")
        if not item.texts:
            ui.label("None.").classes("sl-faint")
            return
        searched, others = (
            [[one.text, one.lang or "–"] for one in item.texts if one.embedded is embedded]
            for embedded in (True, False)
        )
        if searched:
            table(("searched", "language"), searched)
        if others:
            with ui.expansion(f"{count_of(len(others), 'text')} stored, in languages that are not embedded"):
                table(("text", "language"), others)


def _facts(id: UUID, found: Details, item: Item, collection: str | None, now: datetime) -> None:
    with ui.element("section").classes("sl-sheet sl-wrapping"):
        heading("Record")
        rows = [
            ["source", item.source],
            ["id", str(id)],
            ["searchable", searchable(found, collection)],
            ["ingested", f"{found.created:%Y-%m-%d %H:%M} UTC, {ago(found.created, now)}"],
            ["changed", f"{found.updated:%Y-%m-%d %H:%M} UTC, {ago(found.updated, now)}"],
        ]
        if item.image is not None:
            own = item.image
            rows += [
                ["image", f"{own.width:,} × {own.height:,} {own.format}"],
                ["from", redacted(own.uri)],
                ["SHA-256", own.sha256],
            ]
        table(("", ""), rows)


def _metadata(metadata: Mapping[str, Any]) -> None:
    with ui.element("section").classes("sl-sheet"):
        heading("Metadata")
        rows = [
            [field, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
            for field, value in metadata.items()
        ]
        table(("field", "value"), rows)


def _copies(copies: Sequence[Copy] | None, sha256: str) -> None:
    with ui.element("section").classes("sl-sheet"):
        heading("Duplicates")
        if copies is None:
            ui.label(
                "No other record has these bytes. Near duplicates are known after: "
                "sightline duplicates --near"
            ).classes("sl-faint")
            return
        if not copies:
            ui.label("No other record has this image or a near duplicate.").classes("sl-faint")
            return
        rows: list[Row] = [
            [
                partial(ui.link, one.key, f"/records/{one.id}"),
                one.source,
                "identical bytes" if one.sha256 == sha256 else "near duplicate",
            ]
            for one in copies
        ]
        table(("key", "source", ""), rows)
