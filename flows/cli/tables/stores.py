"""What differs between the stores, and what was written, restored, moved or removed, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from flows.cli.tables.format import table_of
from flows.tracking.text import many

if TYPE_CHECKING:  # a command need not wait for what it does not use
    from flows.maintenance.backup import Made
    from flows.maintenance.migrate_to_servers import Moved
    from flows.maintenance.purge import Purged
    from flows.maintenance.repair import RepairResult
    from flows.maintenance.restore import Restored
    from flows.resources.comparison import ComparisonReport


MEANINGS = {
    "missing": "items whose point is gone from Qdrant",
    "stray": "points that no living item has",
    "stale": "points made from other content than Postgres has",
    "wrong_vectors": "points with a vector too many or too few",
    "missing_picture": "pictures whose bytes are gone",
    "other_model": "collections of another model than Postgres says",
    "no_alias": "the alias that searches go through does not lead to the active collection",
    "lost_writes": "collections whose index could not read back all that was written to it",
    "pending": "items that an ingest has not finished; the next one does, and so does --repair",
}


def of_backup(made: Made) -> RenderableType:
    """Return what a backup holds."""
    manifest = made.manifest
    table = table_of("MiB", "file", numbers=1)
    for file in manifest.files:
        table.add_row(f"{file.bytes / 2**20:,.1f}", file.name)
    how = "copied" if manifest.pictures == "copy" else "left where they are"
    parts: list[RenderableType] = [table, Text(f"{many(manifest.items, 'item')}; pictures {how}")]
    if manifest.lost_pictures:
        parts.append(Text(f"{many(manifest.lost_pictures, 'picture')} gone; see: sightline reconcile"))
    if made.proved is None:
        target = made.location.rsplit("/", 1)[0]
        parts.append(Text(f"no backup here was proved yet; run: sightline restore {target} --check"))
    else:
        parts.append(Text(f"last proved: {made.proved.backup}, {made.proved.at:%Y-%m-%d %H:%M} UTC"))
    return Group(*parts, Text(f"backup: {made.location}"))


def of_restored(restored: Restored) -> RenderableType:
    """Return what was restored, and how the stores compare."""
    manifest = restored.manifest
    back, held = sum(restored.points.values()), sum(manifest.points.values())
    source = "its points" if manifest.collections else "its snapshots"
    parts: list[RenderableType] = [
        Text(f"restored {restored.location}, made {manifest.made:%Y-%m-%d %H:%M:%S} UTC"),
        Text(f"{back:,} of {many(held, 'point')} came back from {source}"),
    ]
    if back < held:
        parts.append(
            Text(
                "snapshots of an earlier release fit the kind of Qdrant alone that made them: "
                "sightline reconcile --repair embeds the rest again"
            )
        )
    parts.append(of_differences(restored.report))
    if restored.proof is not None:
        parts.append(Text("proved: it comes back whole, and the throw-away stores agree; they are removed"))
    return Group(*parts)


def of_moved(moved: Moved) -> RenderableType:
    """Return what was copied into servers, how they compare, and what stays in the home."""
    table = table_of("count", "copied", numbers=1)
    table.add_row(f"{sum(moved.rows.values()):,}", "rows")
    for collection, count in moved.points.items():
        table.add_row(f"{count:,}", f"points of {collection}")
    table.add_row(f"{moved.pictures:,}", "pictures")
    stays = ", ".join(map(str, moved.stays)) or "nothing"
    return Group(
        table,
        Text(""),
        of_differences(moved.report),
        Text(""),
        Text("from now on, keep the two URLs set as they are now; the home's embedded stores are unchanged"),
        Text(f"still needed in the home, with SIGHTLINE_HOME={moved.home}: {stays}"),
    )


def of_differences(report: ComparisonReport) -> RenderableType:
    """Return how the stores differ, with some examples."""
    compared = Text(
        f"compared {many(report.items, 'item')} with {many(report.points, 'point')}, "
        f"and {many(report.pictures, 'picture')}"
    )
    if not report.work:
        return Group(compared, Text("They agree."))
    examples = table_of("for example", "source", "key", "id")
    for one in report.examples:
        examples.add_row(
            one.kind.replace("_", " "), Text(one.source or ""), Text(one.key or ""), Text(one.id)
        )
    remedy = "mend them with: sightline reconcile --repair" if report.damage else ""
    return Group(
        compared,
        Text(""),
        of_counts(report),
        Text(""),
        examples,
        *([Text(""), Text(remedy)] if remedy else []),
    )


def of_mended(mended: RepairResult) -> RenderableType:
    """Return what a repair found, and what it left."""
    if not mended.before.work:
        return of_differences(mended.before)
    if mended.after.work:
        rest = [Text("not mended:"), of_counts(mended.after), *(Text(why) for why in mended.unrepaired)]
    else:
        rest = [Text("Mended: they agree now.")]
    return Group(of_counts(mended.before), *rest)


def of_counts(report: ComparisonReport) -> RenderableType:
    """Return the differences of `report` in numbers."""
    table = table_of("count", "what", "", numbers=1)
    for kind, meaning in MEANINGS.items():
        if report.counts[kind]:
            table.add_row(f"{report.counts[kind]:,}", kind.replace("_", " "), meaning)
    return table


def of_purge(purged: Purged, *, dry_run: bool) -> RenderableType:
    """Return what a purge removed, or would remove."""
    verb = "would be removed" if dry_run else "removed"
    return Text(
        f"{purged.orphans:,} of {many(purged.pictures, 'picture')}, "
        f"{many(purged.unfinished, 'unfinished file')}, {many(len(purged.collections), 'collection')} "
        f"and {many(purged.receipts, 'receipt')} {verb}."
    )
