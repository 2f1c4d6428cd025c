"""Reports as tables that line up in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from flows.report import COUNTS, IngestReport, as_sentences
from flows.speed import Speed
from storage.embedded.server import Server
from storage.index import Collection
from storage.lives import Decided, Life
from storage.runs import Reject, Run

if TYPE_CHECKING:  # each command brings its own; a search need not wait for what the others need
    from embedding.intervals import Figure
    from flows.backup import Made
    from flows.deletes import Receipt
    from flows.duplicates import Groups
    from flows.evaluate import Evaluation
    from flows.gate import Decision
    from flows.move import Moved
    from flows.purge import Purged
    from flows.rebuild import Switched
    from flows.reconcile import Mended, Report
    from flows.restore import Restored
    from flows.retry import Retry
    from flows.search import Results
    from flows.served import Served
    from flows.status import Status
    from flows.training import Candidate
    from flows.up import Running

PLAIN_WIDTH = 120
"""How wide tables are where there is no terminal to ask."""

DIRECTIONS = ("text_to_image", "image_to_text")
METRICS = ("recall@1", "recall@5", "recall@10", "mrr", "ndcg@10")


def show(*parts: RenderableType) -> None:
    """Print `parts` on standard output."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=PLAIN_WIDTH)
    console.print(*parts, sep="\n")


def of_ingest(report: IngestReport) -> RenderableType:
    """Return the counts of a run, what was rejected and why, and where the time went."""
    table = _table("", "count")
    notes = {
        "read": f"from source {report.source}",
        "updated": "words about them changed, vectors stay",
        "ignored": "files that are neither pictures nor beside one",
        "truncated": "texts longer than the model reads",
        "still_deleted": "deleted by request; --revive takes them in again",
        "reused": "pictures with a vector already, which cost the model nothing",
    }
    for name in COUNTS:
        count = getattr(report, name)
        if count or name in ("read", "unchanged", "embedded", "rejected"):
            table.add_row(name.replace("_", " "), f"{count:,}", notes.get(name, ""))
    for reason, count in report.reasons.items():
        table.add_row(f"  {reason}", f"{count:,}", "")
    if report.outcome == "dry run":
        return Group(table, Text(f"a dry run in {report.seconds:.1f} s: nothing was written"))
    rates, advice = as_sentences(report.speed)
    done = f"{report.outcome} in {report.seconds:.1f} s: {rates}"
    return Group(table, *(Text(line) for line in (done, _busy(report.speed.busy), advice)))


def _busy(shares: Mapping[str, float]) -> str:
    """Return how much of the time each stage was at work, in a line."""
    busiest = sorted(shares.items(), key=lambda share: (-share[1], share[0]))
    return "at work: " + ", ".join(f"{name} {share:.0%}" for name, share in busiest if share >= 0.005)


def of_results(results: Results) -> RenderableType:
    """Return the hits, best first."""
    if not results.found:
        return Text("Nothing found. Is --min-score too high, or --where too narrow?")
    table = _table("#", "score", "text", "key", "source", numbers=2)
    for rank, one in enumerate(results.found, start=1):
        table.add_row(
            str(rank), f"{one.hit.score:.3f}", Text(one.text), Text(one.item.key), Text(one.item.source)
        )
    return table


def of_rejects(rejects: Sequence[Reject]) -> RenderableType:
    """Return the open rejects."""
    if not rejects:
        return Text("No open rejects.")
    table = _table("source", "place", "reason", "what to do")
    for reject in rejects:
        table.add_row(Text(reject.source), Text(reject.place), reject.reason, Text(reject.message))
    remedy = "fix them at the source, then run: sightline rejects retry"
    return Group(table, Text(f"{len(rejects):,} open; {remedy}"))


def of_retries(retries: Sequence[Retry]) -> RenderableType:
    """Return what became of the rejects that were tried again, by source."""
    if not retries:
        return Text("No open rejects.")
    table = _table("tried", "resolved", "open", "source", "", numbers=3)
    for retry in retries:
        numbers = (f"{number:,}" for number in (retry.tried, retry.tried - retry.open, retry.open))
        table.add_row(*numbers, Text(retry.source), Text(retry.problem or ""))
    return table


def of_backup(made: Made) -> RenderableType:
    """Return what a backup holds."""
    manifest = made.manifest
    table = _table("MiB", "file", numbers=1)
    for file in manifest.files:
        table.add_row(f"{file.bytes / 2**20:,.1f}", file.name)
    how = "copied" if manifest.pictures == "copy" else "left where they are"
    parts: list[RenderableType] = [table, Text(f"{_many(manifest.items, 'item')}; pictures {how}")]
    if manifest.lost_pictures:
        parts.append(Text(f"{_many(manifest.lost_pictures, 'picture')} gone; see: sightline reconcile"))
    return Group(*parts, Text(f"backup: {made.location}"))


def of_restored(restored: Restored) -> RenderableType:
    """Return what was restored, and how the stores compare."""
    parts: list[RenderableType] = [
        Text(f"restored {restored.location}, made {restored.manifest.made:%Y-%m-%d %H:%M:%S} UTC")
    ]
    if not restored.has_vectors:
        parts.append(
            Text("its vectors fit another kind of Qdrant: sightline reconcile --repair embeds again")
        )
    return Group(*parts, of_differences(restored.report))


def of_moved(moved: Moved) -> RenderableType:
    """Return what was copied into servers, how they compare, and what stays in the home."""
    table = _table("count", "copied", numbers=1)
    table.add_row(f"{sum(moved.rows.values()):,}", "rows")
    for collection, many in moved.points.items():
        table.add_row(f"{many:,}", f"points of {collection}")
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


def of_groups(found: Groups) -> RenderableType:
    """Return the items that show the same picture, group by group."""
    table = _table("group", "source", "key", "picture", numbers=1)
    for number, group in enumerate(found.groups, start=1):
        for position, copy in enumerate(group):
            first = f"{number:,}" if position == 0 else ""
            table.add_row(first, Text(copy.source), Text(copy.key), copy.sha256[:12])
    many = sum(map(len, found.groups))
    says = "look alike" if found.near else "have the same bytes"
    parts: list[RenderableType] = [table] if found.groups else []
    parts.append(Text(f"{many:,} pictures in {_many(len(found.groups), 'group')} {says}."))
    if found.unreadable:
        parts.append(Text(f"{_many(found.unreadable, 'picture')} could not be had; see: sightline reconcile"))
    return Group(*parts)


MEANINGS = {
    "missing": "items whose point is gone from Qdrant",
    "stray": "points that no living item has",
    "stale": "points made from other content than Postgres has",
    "wrong_vectors": "points with a vector too many or too few",
    "missing_picture": "pictures whose bytes are gone",
    "other_model": "collections of another model than Postgres says",
    "no_alias": "the alias that searches go through does not lead to the active collection",
    "pending": "items that an ingest has not finished; the next one does, and so does --repair",
}


def of_differences(report: Report) -> RenderableType:
    """Return how the stores differ, with some examples."""
    compared = Text(
        f"compared {_many(report.items, 'item')} with {_many(report.points, 'point')}, "
        f"and {_many(report.pictures, 'picture')}"
    )
    if not report.work:
        return Group(compared, Text("They agree."))
    examples = _table("for example", "source", "key", "id")
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


def of_mended(mended: Mended) -> RenderableType:
    """Return what a repair found, and what it left."""
    if not mended.before.work:
        return of_differences(mended.before)
    if mended.after.work:
        rest = [Text("not mended:"), of_counts(mended.after), *(Text(why) for why in mended.unmended)]
    else:
        rest = [Text("Mended: they agree now.")]
    return Group(of_counts(mended.before), *rest)


def of_counts(report: Report) -> RenderableType:
    """Return the differences of `report` in numbers."""
    table = _table("count", "what", "", numbers=1)
    for kind, meaning in MEANINGS.items():
        if report.counts[kind]:
            table.add_row(f"{report.counts[kind]:,}", kind.replace("_", " "), meaning)
    return table


def of_purge(purged: Purged, *, dry_run: bool) -> RenderableType:
    """Return what a purge removed, or would remove."""
    verb = "would be removed" if dry_run else "removed"
    return Text(
        f"{purged.orphans:,} of {_many(purged.pictures, 'picture')}, "
        f"{_many(purged.unfinished, 'unfinished file')} and {_many(len(purged.collections), 'collection')} "
        f"{verb}."
    )


def of_dry_delete(found: Mapping[str, int]) -> RenderableType:
    """Return how many items a delete would take, by source."""
    if not found:
        return Text("Nothing to delete.")
    table = _table("items", "source", numbers=1)
    for source, many in found.items():
        table.add_row(f"{many:,}", Text(source))
    return Group(table, Text("a dry run: nothing was deleted"))


def of_receipt(receipt: Receipt) -> RenderableType:
    """Return what a delete took, in numbers."""
    table = _table("count", "deleted", numbers=1)
    table.add_row(f"{receipt.items:,}", "items")
    for collection, many in sorted(receipt.points.items()):
        table.add_row(f"{many:,}", f"points in {collection}")
    table.add_row(f"{receipt.marks:,}", "marks")
    for fate, many in sorted(receipt.pictures.items()):
        table.add_row(f"{many:,}", f"pictures: {fate}")
    if receipt.rejects:
        table.add_row(f"{receipt.rejects:,}", "rejects")
    return Group(table, Text(f"receipt: {receipt.path}"))


def of_evaluation(evaluation: Evaluation) -> RenderableType:
    """Return each direction with its gallery size: figures with intervals, and how the models differ."""
    parts: list[RenderableType] = []
    for direction in evaluation.models[0].curves:
        parts += [_of_direction(evaluation, direction), Text("")]
    notes = ["below each figure its 95% interval, by bootstrap over records"]
    if evaluation.left_out:
        notes.append(f"{_many(evaluation.left_out, 'picture')} left out: not every model could be shown them")
    if evaluation.unanswerable:
        notes.append(
            f"{evaluation.unanswerable:,} captions, pictures or judged queries have no right answer here"
        )
    return Group(*parts, *(Text(note) for note in notes))


def _of_direction(evaluation: Evaluation, direction: str) -> RenderableType:
    whole = next(one for one in evaluation.models[0].measured if one.direction == direction)
    several = whole.figures["map"] != whole.figures["mrr"]  # the same for queries with one answer each
    metrics = (*METRICS[:-1], *(["map"] if several else []), METRICS[-1])
    title = direction.replace("_", " ")
    table = _table(f"{title}, gallery {whole.gallery:,}", "queries", *metrics)
    for column in table.columns[1:]:
        column.justify = "right"
    named = [(model.model, "", model.measured) for model in evaluation.models]
    named += [(f"{one.model} over {one.over}", "+", one.measured) for one in evaluation.comparisons]
    for name, sign, measured in named:
        for one in (one for one in measured if one.direction == direction):
            figures = (_with_interval(one.figures[metric], sign) for metric in metrics)
            label = name if one.part is None else f"  {one.part}"
            table.add_row(Text(label), f"{one.queries:,}", *figures)
    return table


def _with_interval(figure: Figure, sign: str = "") -> str:
    value = f"{figure.value:{sign}.3f}"
    if figure.low is None or figure.high is None:
        return value
    bounds = f"{figure.low:.2f}–{figure.high:.2f}".replace("0.", ".")
    return f"{value}\n{bounds}"


def of_models(models: Sequence[Life]) -> RenderableType:
    """Return what is known of each model."""
    if not models:
        return Text("No models yet; run: sightline ingest SOURCE")
    columns = ("model", "state", "from", "text to image", "image to text", "last decision", "collection")
    table = _table(*columns)
    for column in table.columns[3:5]:
        column.justify = "right"
    for one in models:
        figures = [one.figures.get(direction, {}).get("recall@10") for direction in DIRECTIONS]
        table.add_row(
            Text(one.name),
            one.state,
            Text(one.parent or ""),
            *("" if figure is None else f"{figure:.3f}" for figure in figures),
            Text(_decided(one.decided)),
            Text("\n".join(f"{name} ({state})" for name, state in one.collections.items())),
        )
    return Group(table, Text("figures: recall@10 on the pairs that were held out of its own training"))


def _decided(decided: Decided | None) -> str:
    if decided is None:
        return ""
    how = "promoted" if decided.promoted else "refused"
    forced = " by force" if decided.forced else ""
    return f"{how}{forced} {decided.at.astimezone():%Y-%m-%d %H:%M}"


def of_decision(decision: Decision) -> RenderableType:
    """Return what a candidate passed and what not, and whether it may be used."""
    table = _table("check", "", "queries", decision.active, "candidate", "difference", "needed")
    for column in table.columns[2:]:
        column.justify = "right"
    for check in decision.checks:
        held_out = check.name == "held-out"
        needed = f"interval above {check.limit:.3f}" if held_out else f"at least {check.limit:+.3f}"
        table.add_row(
            Text(check.name),
            "passed" if check.passed else "failed",
            f"{check.queries:,}",
            f"{check.active:.3f}",
            f"{check.candidate:.3f}",
            _with_interval(check.difference, "+"),
            needed,
        )
    lines = [*decision.remarks]
    if decision.promoted:
        how = "promoted by force" if decision.forced else "promoted"
        lines += [f"{decision.candidate} is {how}", f"next: sightline reindex --model {decision.candidate}"]
    else:
        lines.append(f"{decision.candidate} is not promoted; searches stay with {decision.active}")
    shown: list[RenderableType] = (
        [table, Text("recall@10, the mean of both directions")] if decision.checks else []
    )
    return Group(*shown, *map(Text, lines))


def of_served(served: Served) -> RenderableType:
    """Return what runs when, and where to watch it."""
    watch = Text(f"watch them, pause them or start one by hand at {served.ui}")
    return Group(_of_planned(served), Text(""), watch)


def of_running(running: Running) -> RenderableType:
    """Return where everything is, and what runs when."""
    table = _table("what", "where")
    for name, address in (*running.addresses().items(), ("Prefect", running.served.ui)):
        table.add_row(name, Text(address))
    return Group(table, Text(""), _of_planned(running.served), Text(""), Text("Ctrl-C ends all of it."))


def _of_planned(served: Served) -> Table:
    table = _table("flow", "cron, UTC", "next run, UTC")
    for one in served.planned:
        when = "" if one.next is None else f"{one.next:%Y-%m-%d %H:%M}"
        table.add_row(one.flow, one.cron or "off", "paused" if one.paused else when)
    return table


def of_switched(switched: Switched) -> RenderableType:
    """Return where searches go now."""
    lines = [f"{_many(switched.written, 'point')} written; searches use {switched.model}"]
    if switched.recall is not None:
        lines.append(f"a sample of searches finds {switched.recall:.1%} of what exact ones find")
    lines += switched.missing
    lines.append(f"collection {switched.collection}")
    if switched.before is not None:
        lines.append(f"{switched.before} is kept for a while; back with: sightline rollback")
    return Group(*map(Text, lines))


def of_candidate(candidate: Candidate) -> RenderableType:
    """Return what a training made, and what to do with it."""
    pairs, trained = candidate.pairs, candidate.trained
    table = _table("held out", "model", *METRICS)
    for column in table.columns[2:]:
        column.justify = "right"
    for direction, after in candidate.after.items():
        name = direction.replace("_", " ")
        for which, figures in (("before", candidate.before[direction]), ("after", after)):
            table.add_row(name, which, *(f"{figures[metric]:.3f}" for metric in METRICS))
    stopped = ", stopped early" if trained.stopped_early else ""
    seconds = ", ".join(f"{name} {taken:.1f} s" for name, taken in candidate.seconds.items())
    learned = (
        f"{pairs['train']:,} pairs learned from, {pairs['validation']:,} for validation, "
        f"{pairs['held-out']:,} held out; {trained.steps:,} steps{stopped}; {seconds}"
    )
    measured: list[RenderableType] = [table, Text("")] if candidate.after else []
    return Group(
        *measured,
        Text(learned),
        Text(f"candidate {candidate.name}: {candidate.folder}"),
        Text(f"next: sightline promote {candidate.name}"),
    )


RUN_COUNTS = ("read", "embedded", "rejected", "deleted")


def of_status(status: Status) -> RenderableType:
    """Return what is stored, what is open and how the last runs went."""
    about = _table("", "")
    about.show_header = False
    items = status.items
    about.add_row("home", Text(status.home))
    about.add_row("items", f"{items['items']:,} in {items['sources']:,} sources")
    about.add_row("", f"{items['with_picture']:,} with a picture, {items['with_text']:,} with texts")
    if status.shared_pictures:
        about.add_row("", f"{status.sharing_items:,} items share {status.shared_pictures:,} pictures")
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
    runs = _table("started", "flow", "source", "outcome", *RUN_COUNTS, "seconds")
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
    short = "" if collection.short_dim is None else f", the first {collection.short_dim} looked at first"
    packed = "" if collection.quantization == "none" else f", packed as {collection.quantization}"
    return f"{collection.dim} dimensions{short}{packed}"


def _of_speed(run: Run) -> RenderableType:
    """Return how fast the last ingest was, and what it waited for."""
    speed = Speed(**run.counts["speed"])
    rates, advice = as_sentences(speed)
    return Group(*(Text(line) for line in (f"last ingest: {rates}", _busy(speed.busy), advice)))


def _of_failed(failed: Sequence[Run]) -> Table:
    """Return which runs need somebody, each with why on one line."""
    table = _table("failed", "flow", "source", "outcome", "why")
    for run in failed:
        ended = "" if run.ended is None else f"{run.ended.astimezone():%Y-%m-%d %H:%M:%S}"
        why = (run.error or "its process ended without a word").strip().splitlines()[0]
        table.add_row(ended, run.flow, Text(run.source or ""), run.outcome, Text(why))
    return table


def _of_servers(servers: Sequence[Server]) -> Table:
    table = _table("server", "address", "process", "points", "on disk", "since")
    for column in table.columns[2:5]:
        column.justify = "right"
    for server in servers:
        since = f"{server.since.astimezone():%Y-%m-%d %H:%M:%S}"
        size = f"{server.bytes / 1024**2:,.1f} MiB"
        points = "" if server.points is None else f"{server.points:,}"
        table.add_row(server.name, Text(server.address), str(server.pid), points, size, since)
    return table


def _many(count: int, name: str) -> str:
    return f"{count:,} {name}" if count == 1 else f"{count:,} {name}s"


def _table(*columns: str, numbers: int = 0) -> Table:
    """Return an empty table without lines; the first `numbers` columns are set to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position < numbers else "left", overflow="fold")
    return table
