"""Format comparisons, repairs, backups, restores, moves and purges as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from flows.cli.tables.format import table_of
from flows.tracking.text import count_of

if TYPE_CHECKING:  # a command need not wait for what it does not use
    from flows.maintenance.backup import BackupResult
    from flows.maintenance.migrate_to_servers import MoveResult
    from flows.maintenance.purge import PurgeResult
    from flows.maintenance.repair import RepairResult
    from flows.maintenance.restore import RestoreResult
    from flows.resources.comparison import ComparisonReport


MEANINGS = {
    "missing": "items whose point is gone from Qdrant",
    "stray": "points that no living item has",
    "stale": "points made from other content than Postgres has",
    "wrong_vectors": "points with a vector too many or too few",
    "missing_picture": "images whose bytes are gone",
    "other_model": "collections of another model than Postgres says",
    "no_alias": "the alias of searches does not lead to the active collection",
    "lost_writes": "collections whose index lost a part of its writes",
    "pending": "items that an ingest has not finished; the next one does, and so does --repair",
}


def of_backup(made: BackupResult) -> RenderableType:
    """Return the contents of a backup."""
    manifest = made.manifest
    table = table_of("MiB", "file", numbers=1)
    for file in manifest.files:
        table.add_row(f"{file.bytes / 2**20:,.1f}", file.name)
    how = "copied" if manifest.pictures == "copy" else "left where they are"
    parts: list[RenderableType] = [table, Text(f"{count_of(manifest.items, 'item')}; images {how}")]
    if manifest.lost_pictures:
        parts.append(Text(f"{count_of(manifest.lost_pictures, 'image')} gone; see: sightline reconcile"))
    if made.proved is None:
        target = made.location.rsplit("/", 1)[0]
        parts.append(Text(f"no backup here was proved yet; run: sightline restore {target} --check"))
    else:
        parts.append(Text(f"last proved: {made.proved.backup}, {made.proved.at:%Y-%m-%d %H:%M} UTC"))
    return Group(*parts, Text(f"backup: {made.location}"))


def of_restored(restored: RestoreResult) -> RenderableType:
    """Return the restored data, and the comparison of the stores."""
    manifest = restored.manifest
    back, held = sum(restored.points.values()), sum(manifest.points.values())
    source = "its points" if manifest.collections else "its snapshots"
    parts: list[RenderableType] = [
        Text(f"restored {restored.location}, made {manifest.made:%Y-%m-%d %H:%M:%S} UTC"),
        Text(f"{back:,} of {count_of(held, 'point')} came back from {source}"),
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
        parts.append(Text("proved: it comes back whole, and the temporary stores agree; they are removed"))
    return Group(*parts)


def of_moved(moved: MoveResult) -> RenderableType:
    """Return the copied data, the comparison, and the data that stays."""
    table = table_of("count", "copied", numbers=1)
    table.add_row(f"{sum(moved.rows.values()):,}", "rows")
    for collection, count in moved.points.items():
        table.add_row(f"{count:,}", f"points of {collection}")
    table.add_row(f"{moved.pictures:,}", "images")
    stays = ", ".join(map(str, moved.stays)) or "nothing"
    return Group(
        table,
        Text(""),
        of_differences(moved.report),
        Text(""),
        Text("from now on, keep the two URLs set as they are now; the embedded stores are unchanged"),
        Text(f"still needed in the data directory, with SIGHTLINE_HOME={moved.home}: {stays}"),
    )


def of_differences(report: ComparisonReport) -> RenderableType:
    """Return the differences of the stores, with examples."""
    compared = Text(
        f"compared {count_of(report.items, 'item')} with {count_of(report.points, 'point')}, "
        f"and {count_of(report.pictures, 'image')}"
    )
    if not report.work:
        return Group(compared, Text("They agree."))
    examples = table_of("for example", "source", "key", "id")
    for one in report.examples:
        examples.add_row(
            one.kind.replace("_", " "), Text(one.source or ""), Text(one.key or ""), Text(one.id)
        )
    remedy = "repair them with: sightline reconcile --repair" if report.damage else ""
    return Group(
        compared,
        Text(""),
        of_counts(report),
        Text(""),
        examples,
        *([Text(""), Text(remedy)] if remedy else []),
    )


def of_repair(repaired: RepairResult) -> RenderableType:
    """Return the differences that a repair found and left."""
    if not repaired.before.work:
        return of_differences(repaired.before)
    if repaired.after.work:
        rest = [Text("not repaired:"), of_counts(repaired.after), *(Text(why) for why in repaired.unrepaired)]
    else:
        rest = [Text("Repaired: they agree now.")]
    return Group(of_counts(repaired.before), *rest)


def of_counts(report: ComparisonReport) -> RenderableType:
    """Return the number of differences of each kind."""
    table = table_of("count", "difference", "", numbers=1)
    for kind, meaning in MEANINGS.items():
        if report.counts[kind]:
            table.add_row(f"{report.counts[kind]:,}", kind.replace("_", " "), meaning)
    return table


def of_purge(purged: PurgeResult, *, dry_run: bool) -> RenderableType:
    """Return the numbers of a purge."""
    verb = "would be removed" if dry_run else "removed"
    return Text(
        f"{purged.orphans:,} of {count_of(purged.pictures, 'image')}, "
        f"{count_of(purged.unfinished, 'unfinished file')}, "
        f"{count_of(len(purged.collections), 'collection')} "
        f"and {count_of(purged.receipts, 'receipt')} {verb}."
    )
