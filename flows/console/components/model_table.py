"""Show tables of models and of promotion decisions."""

from functools import partial

from nicegui import ui

from flows.console.components.recall_chart import short
from flows.console.format import moment, share
from flows.console.widgets import Row, table
from flows.service.model_overview import ModelOverview
from flows.tracking.text import count_of
from storage.postgres.model_history import Decision, DecisionCheck, ModelHistory
from storage.postgres.statistics import HEADLINE


def model_name(depth: int, life: ModelHistory) -> None:
    """Show a model's name, indented below its parent."""
    label = ui.label(("└ " if depth else "") + short(life.name, life.fingerprint))
    label.style(f"padding-left: {max(0, depth - 1) * 1.2}rem; white-space: nowrap")
    label.props["title"] = f"{life.name}, {life.fingerprint}, since {moment(life.created)}"


def model_state(state: str) -> None:
    """Show the state of a model."""
    ui.label(state).classes("sl-good" if state == "active" else "sl-faint")


def model_collections(seen: ModelOverview, life: ModelHistory) -> None:
    """Show the collections of a model."""
    own = [one for one in seen.collections if one.fingerprint == life.fingerprint]
    for one in own:
        points = seen.points.get(one.name)
        what = [one.state]
        if points is not None:
            what.append(count_of(points, "point"))
        elif seen.qdrant_problem is None:
            what.append("missing from Qdrant")
        if one.activated is not None:
            what.append(f"active from {moment(one.activated)}")
        if one.retired is not None:
            what.append(f"to {moment(one.retired)}")
        ui.label(one.name).style("white-space: nowrap")
        ui.label(", ".join(what)).classes("sl-faint")
    if not own:
        ui.label("–")


def recall_change(life: ModelHistory, direction: str) -> str:
    """Return recall@10 of held-out pairs before and after training."""
    before, after = (figures.get(direction, {}).get(HEADLINE) for figures in (life.before, life.figures))
    return "–" if after is None else f"{share(before)} → {share(after)}"


def last_decision(life: ModelHistory) -> str:
    """Return the last decision of the promotion gate."""
    if life.decided is None:
        return "–"
    return f"{_verdict(life.decided.promoted, life.decided.forced)}, {moment(life.decided.at)}"


def _verdict(promoted: bool, forced: bool) -> str:
    if not promoted:
        return "rejected"
    return "promoted by force" if forced else "promoted"


def show_decision(decision: Decision) -> None:
    """Show a decision with its checks."""
    with ui.element("div").classes("sl-row"):
        verdict = _verdict(decision.promoted, decision.forced)
        ui.label(verdict).classes("sl-strong " + ("sl-good" if decision.promoted else "sl-bad"))
        ui.label(f"{decision.candidate}, over {decision.active or 'none'}").style("overflow-wrap: anywhere")
        ui.label(moment(decision.at)).classes("sl-faint")
    if not decision.checks:
        ui.label("Nothing was compared.").classes("sl-faint")
        return
    rows: list[Row] = [
        [
            one.name,
            partial(_passed, one.passed),
            f"{one.queries:,}",
            share(one.active),
            share(one.candidate),
            _gain(one),
            _required(one),
        ]
        for one in decision.checks
    ]
    table(("check", "", "queries", "in use", "candidate", "gain", "required"), rows, numbers=5)


def _passed(passed: bool) -> None:
    ui.label("passed" if passed else "failed").classes("sl-good" if passed else "sl-bad")


def _gain(one: DecisionCheck) -> str:
    interval = "" if one.low is None or one.high is None else f" ({one.low:+.1%} to {one.high:+.1%})"
    return f"{one.gain:+.1%}{interval}"


def _required(one: DecisionCheck) -> str:
    return f"interval above {one.limit:.1%}" if one.name == "held-out" else f"at least {one.limit:+.1%}"
