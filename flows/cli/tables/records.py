"""Format ingests, hits, rejects, duplicates and deletes as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from flows.cli.tables.format import busy_line, table_of
from flows.ingestion.left_out import lines_of_ignored
from flows.ingestion.report import COUNTS, IngestReport, as_sentences
from flows.tracking.text import count_of
from storage.postgres.rejects import Reject

if TYPE_CHECKING:  # a command need not wait for what it does not use
    from flows.datasets.near_duplicates import DuplicateGroups
    from flows.ingestion.retry_rejects import RetryReport
    from flows.maintenance.delete import Receipt
    from flows.search.query import Results


def of_ingest(report: IngestReport) -> RenderableType:
    """Return the counts, reject reasons and throughput of a run."""
    table = table_of("", "count")
    notes = {
        "read": f"from source {report.source}",
        "updated": "metadata changed, vectors stay",
        "not_deleted": "missing from the source, but kept",
        "ignored": "files left out; see: sightline rejects --ignored",
        "truncated": "texts longer than the model reads",
        "still_deleted": "deleted by request; --revive ingests them again",
        "reused": "images with a stored vector, not encoded again",
    }
    for name in COUNTS:
        count = getattr(report, name)
        if count or name in ("read", "unchanged", "embedded", "rejected"):
            table.add_row(name.replace("_", " "), f"{count:,}", notes.get(name, ""))
    for reason, count in report.reasons.items():
        table.add_row(f"  {reason}", f"{count:,}", "")
    kept = [] if report.not_deleted_because is None else [report.not_deleted_because]
    kept += lines_of_ignored(report.left_out)
    if report.outcome == "dry run":
        done = f"a dry run in {report.seconds:.1f} s: nothing was written"
        return Group(table, *(Text(line) for line in (*kept, done)))
    rates, advice = as_sentences(report.speed)
    done = f"{report.outcome} in {report.seconds:.1f} s: {rates}"
    return Group(table, *(Text(line) for line in (*kept, done, busy_line(report.speed.busy), advice)))


def of_ignored(sources: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """Return the ignored files of each source."""
    table = table_of("source", "reason", "place", "detail")
    lines: list[Text] = []
    for source, left_out in sources.items():
        for one in left_out["first"]:
            table.add_row(Text(source), one["reason"], Text(one["place"]), Text(one.get("detail", "")))
        lines += [Text(f"{source}: {line}") for line in lines_of_ignored(left_out)]
    return Group(table, *lines) if lines else Text("Nothing is ignored.")


def of_results(results: Results) -> RenderableType:
    """Return the hits, best first."""
    if not results.found:
        return Text("Nothing found. Is --min-score too high, or --where too narrow?")
    table = table_of("#", "score", "text", "key", "source", numbers=2)
    for rank, one in enumerate(results.found, start=1):
        table.add_row(
            str(rank), f"{one.hit.score:.3f}", Text(one.text), Text(one.item.key), Text(one.item.source)
        )
    return table


def of_rejects(rejects: Sequence[Reject]) -> RenderableType:
    """Return the open rejects."""
    if not rejects:
        return Text("No open rejects.")
    table = table_of("source", "place", "reason", "remedy")
    for reject in rejects:
        table.add_row(Text(reject.source), Text(reject.place), reject.reason, Text(reject.message))
    remedy = "fix them at the source, then run: sightline rejects retry"
    return Group(table, Text(f"{len(rejects):,} open; {remedy}"))


def of_retries(retries: Sequence[RetryReport]) -> RenderableType:
    """Return the results of retried rejects by source."""
    if not retries:
        return Text("No open rejects.")
    table = table_of("retried", "resolved", "open", "source", "", numbers=3)
    for retry in retries:
        numbers = (f"{number:,}" for number in (retry.tried, retry.tried - retry.open, retry.open))
        table.add_row(*numbers, Text(retry.source), Text(retry.problem or ""))
    return table


def of_groups(found: DuplicateGroups) -> RenderableType:
    """Return the groups of items with the same image."""
    table = table_of("group", "source", "key", "image", numbers=1)
    for number, group in enumerate(found.groups, start=1):
        for position, copy in enumerate(group):
            first = f"{number:,}" if position == 0 else ""
            table.add_row(first, Text(copy.source), Text(copy.key), copy.sha256[:12])
    count = sum(map(len, found.groups))
    says = "look alike" if found.near else "have the same bytes"
    parts: list[RenderableType] = [table] if found.groups else []
    parts.append(Text(f"{count:,} images in {count_of(len(found.groups), 'group')} {says}."))
    if found.unreadable:
        parts.append(
            Text(f"{count_of(found.unreadable, 'image')} could not be read; see: sightline reconcile")
        )
    return Group(*parts)


def of_dry_delete(found: Mapping[str, int]) -> RenderableType:
    """Return the number of items that a delete would remove, by source."""
    if not found:
        return Text("Nothing to delete.")
    table = table_of("items", "source", numbers=1)
    for source, count in found.items():
        table.add_row(f"{count:,}", Text(source))
    return Group(table, Text("a dry run: nothing was deleted"))


def of_receipt(receipt: Receipt) -> RenderableType:
    """Return the numbers of a delete."""
    table = table_of("count", "deleted", numbers=1)
    table.add_row(f"{receipt.items:,}", "items")
    for collection, count in sorted(receipt.points.items()):
        table.add_row(f"{count:,}", f"points in {collection}")
    table.add_row(f"{receipt.marks:,}", "embedding states")
    for fate, count in sorted(receipt.pictures.items()):
        table.add_row(f"{count:,}", f"images: {fate}")
    if receipt.rejects:
        table.add_row(f"{receipt.rejects:,}", "rejects")
    return Group(table, Text(f"receipt: {receipt.path}"))
