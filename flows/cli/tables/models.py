"""Format evaluations, decisions, models and re-indexes as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from flows.cli.tables.format import table_of
from flows.tracking.text import count_of
from storage.postgres.model_history import LastDecision, ModelHistory

if TYPE_CHECKING:  # a command need not wait for what it does not use
    from embedding.evaluation.bootstrap import Estimate
    from flows.evaluation.evaluate import Evaluation
    from flows.evaluation.promotion_gate import Decision
    from flows.reindexing.reindex import ReindexResult
    from flows.training.spec import Candidate


DIRECTIONS = ("text_to_image", "image_to_text")

METRICS = ("recall@1", "recall@5", "recall@10", "mrr", "ndcg@10")


def of_evaluation(evaluation: Evaluation) -> RenderableType:
    """Return the figures of each direction, and the differences between models."""
    parts: list[RenderableType] = []
    for direction in evaluation.models[0].curves:
        parts += [_of_direction(evaluation, direction), Text("")]
    notes = ["below each figure its 95% interval, by bootstrap over records"]
    if evaluation.left_out:
        notes.append(f"{count_of(evaluation.left_out, 'image')} left out: not every model could encode them")
    if evaluation.unanswerable:
        notes.append(
            f"{evaluation.unanswerable:,} captions, images or judged queries have no right answer here"
        )
    return Group(*parts, *(Text(note) for note in notes))


def _of_direction(evaluation: Evaluation, direction: str) -> RenderableType:
    whole = next(one for one in evaluation.models[0].measured if one.direction == direction)
    several = whole.figures["map"] != whole.figures["mrr"]  # the same for queries with one answer each
    metrics = (*METRICS[:-1], *(["map"] if several else []), METRICS[-1])
    title = direction.replace("_", " ")
    table = table_of(f"{title}, gallery {whole.gallery:,}", "queries", *metrics)
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


def _with_interval(figure: Estimate, sign: str = "") -> str:
    value = f"{figure.value:{sign}.3f}"
    if figure.low is None or figure.high is None:
        return value
    bounds = f"{figure.low:.2f}–{figure.high:.2f}".replace("0.", ".")
    return f"{value}\n{bounds}"


def of_models(models: Sequence[ModelHistory]) -> RenderableType:
    """Return all models with their figures and decisions."""
    if not models:
        return Text("No models yet; run: sightline ingest SOURCE")
    columns = ("model", "state", "from", "text to image", "image to text", "last decision", "collection")
    table = table_of(*columns)
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
    return Group(table, Text("figures: recall@10 on the pairs held out of its training"))


def _decided(decided: LastDecision | None) -> str:
    if decided is None:
        return ""
    how = "promoted" if decided.promoted else "rejected"
    forced = " by force" if decided.forced else ""
    return f"{how}{forced} {decided.at.astimezone():%Y-%m-%d %H:%M}"


def of_decision(decision: Decision) -> RenderableType:
    """Return the checks of a candidate and the decision."""
    table = table_of("check", "", "queries", decision.active, "candidate", "difference", "needed")
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


def of_switched(switched: ReindexResult) -> RenderableType:
    """Return the result of a switch of searches."""
    lines = [f"{count_of(switched.written, 'point')} written; searches use {switched.model}"]
    if switched.recall is not None:
        lines.append(f"a sample of searches finds {switched.recall:.1%} of what exact ones find")
    lines += switched.missing
    lines.append(f"collection {switched.collection}")
    if switched.before is not None:
        lines.append(f"{switched.before} is kept for a while; back with: sightline rollback")
    return Group(*map(Text, lines))


def of_candidate(candidate: Candidate) -> RenderableType:
    """Return the figures of a candidate and the next step."""
    pairs, trained = candidate.pairs, candidate.trained
    table = table_of("held out", "model", *METRICS)
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
