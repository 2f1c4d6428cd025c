"""Delete selected items with everything they leave, and write a receipt."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TextIO
from uuid import UUID, uuid4

from flows.resources.connections import Stores
from flows.resources.deletion import DELETE_BATCH, DeletedItem, clear_deleted, finish_deletes
from flows.tracking.retry_policy import persist
from flows.tracking.run_log import Totals, tracked_run
from storage.errors import InvalidInput, NotFound
from storage.files import durable_rename
from storage.postgres import catalog, runs
from storage.postgres.catalog import Selection
from storage.postgres.locks import source_lock
from storage.postgres.rejects import forget_rejects

Add = Callable[[list[DeletedItem], int], None]
"""Adds deleted items, and the number of their rejects, to the receipt."""


class NoSuchItem(NotFound):
    """A key is in no source, or in several; nothing was deleted."""

    refusal = True


class TooManyItems(InvalidInput):
    """A request selects more items than it may delete; nothing was deleted."""

    refusal = True


@dataclass(slots=True)
class Receipt:
    """Count the deleted items; the file lists each of them."""

    path: Path
    items: int = 0
    points: Counter[str] = field(default_factory=Counter)
    """Points removed, by collection."""

    marks: int = 0
    rejects: int = 0
    pictures: Counter[str] = field(default_factory=Counter)
    """Images by outcome."""

    def add(self, gone: list[DeletedItem]) -> None:
        self.items += len(gone)
        self.points.update(name for one in gone for name in one.collections)
        self.marks += sum(one.marks for one in gone)
        self.pictures.update(one.image for one in gone if one.image)

    def as_json(self) -> dict[str, Any]:
        return {
            "items": self.items,
            "points": dict(sorted(self.points.items())),
            "marks": self.marks,
            "rejects": self.rejects,
            "pictures": dict(sorted(self.pictures.items())),
        }


def count_selected(stores: Stores, selection: Selection) -> dict[str, int]:
    """Count the living items that a delete would remove, by source.

    Raises:
        NoSuchItem: a key is in no source, or in several.
    """
    with stores.sessions() as session:
        if selection.keys:
            _require_each_once(selection, catalog.sources_of_keys(session, selection))
        return catalog.count_by_source(session, selection)


def require_few(stores: Stores, selection: Selection, at_most: int) -> None:
    """Reject a selection of more than `at_most` items.

    Raises:
        TooManyItems: it selects more by now.
        NoSuchItem: a key is in no source, or in several.
    """
    count = sum(count_selected(stores, selection).values())
    if count > at_most:
        raise TooManyItems(
            f"this would delete {count:,} records by now, more than the {at_most:,} that the key may delete "
            "with one request; nothing was deleted"
        )


def delete_items(stores: Stores, selection: Selection, folder: Path, *, for_s: float) -> Receipt:
    """Delete the selected items permanently; an interrupted delete can be resumed.

    Args:
        folder: gets the receipt.
        for_s: how long work is retried while a store does not answer.

    Raises:
        NoSuchItem: a key is in no source, or in several.
        Busy: another process writes one of the sources; those before it in order of name are done.
    """
    sources = persist(partial(_sources, stores, selection), for_s=for_s)
    with _receipt(folder, selection) as (receipt, add):
        for source in sources:
            _delete_in(stores, replace(selection, source=source), for_s, receipt, add)
    return receipt


def _sources(stores: Stores, selection: Selection) -> list[str]:
    """Return the sources of selected items, and of interrupted deletes."""
    sources = set(count_selected(stores, selection))
    with stores.sessions() as session:
        return sorted(sources | catalog.sources_with_uncleared(session, selection))


def _delete_in(stores: Stores, selection: Selection, for_s: float, receipt: Receipt, add: Add) -> None:
    """Delete the selected items of one source."""
    source, before = selection.source or "", receipt.items
    with tracked_run(
        stores.sessions,
        source_lock(stores.engine, source),
        "delete",
        for_s=for_s,
        source=source,
        options=_as_options(selection),
        totals=lambda: Totals({"deleted": receipt.items - before}, {}),
    ) as run:
        while batch := run.persist(partial(_tombstone_batch, stores, selection, run.id)):
            ids, rejects = batch
            add(run.persist(partial(clear_deleted, stores, ids)), rejects)
        while unfinished := run.persist(lambda: next(finish_deletes(stores, source), [])):
            add(unfinished, 0)


def _tombstone_batch(stores: Stores, selection: Selection, run_id: UUID) -> tuple[list[UUID], int] | None:
    """Write the tombstones of one batch.

    Returns:
        The ids and the number of deleted rejects; None if no item is left.
    """
    with stores.sessions.begin() as session:
        runs.require_running(session, run_id)
        ids = catalog.selected_ids(session, selection, DELETE_BATCH)
        catalog.tombstone(session, ids, asked=True)
        items = catalog.tombstones(session, ids).values()
        rejects = forget_rejects(session, [(item.source, item.key) for item in items])
    return (ids, rejects) if ids else None


@contextmanager
def _receipt(folder: Path, selection: Selection) -> Iterator[tuple[Receipt, Add]]:
    """Write the receipt item by item, and rename it when complete."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    now = datetime.now(UTC)
    path = folder / f"delete-{now:%Y-%m-%dT%H-%M-%S}-{uuid4().hex[:8]}.json"
    receipt = Receipt(path)
    unfinished = path.with_suffix(".part")
    with unfinished.open("x", encoding="utf-8") as file:
        head = {"asked": _as_options(selection), "at": now.isoformat(timespec="seconds")}
        file.write(json.dumps(head, ensure_ascii=False)[:-1] + ', "items": [')

        def add(gone: list[DeletedItem], rejects: int) -> None:
            _append(file, gone, first=receipt.items == 0)
            receipt.add(gone)
            receipt.rejects += rejects

        yield receipt, add
        file.write(f'\n], "totals": {json.dumps(receipt.as_json())}}}\n')
    durable_rename(unfinished, path)


def _append(file: TextIO, gone: list[DeletedItem], *, first: bool) -> None:
    for position, one in enumerate(gone):
        file.write(("" if first and position == 0 else ",") + "\n")
        file.write(json.dumps(one.as_json(), ensure_ascii=False))
    file.flush()


def _as_options(selection: Selection) -> dict[str, Any]:
    return {"keys": list(selection.keys), "source": selection.source, "where": dict(selection.where)}


def _require_each_once(selection: Selection, found: dict[str, dict[str, bool]]) -> None:
    if missing := [key for key in selection.keys if key not in found]:
        where = f" in source {selection.source!r}" if selection.source else ""
        raise NoSuchItem(f"no item has the key {missing[0]!r}{where}; nothing was deleted")
    for key in selection.keys:
        living = [source for source, alive in found[key].items() if alive]
        if len(living) > 1:
            raise NoSuchItem(
                f"key {key!r} is in the sources {', '.join(living)}; say which with --source; "
                "nothing was deleted"
            )
