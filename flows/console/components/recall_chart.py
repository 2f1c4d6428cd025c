"""Show the recall@k of models with confidence intervals, charted and tabulated."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import PurePath
from typing import Any

from nicegui import ui

from flows.console.format import moment, share
from flows.console.widgets import Row, table
from storage.postgres.statistics import EvaluationFigure

CUTOFFS = (1, 5, 10)
METRICS = (*(f"recall@{k}" for k in CUTOFFS), "mrr", "ndcg@10")
COLOURS = ("#5b8def", "#e08a3c", "#2e9e6b", "#b565c9", "#c94f5b", "#8a94a0")
GREY = {"color": "#8a94a0"}
THICK = 0.008
"""Half the height of a drawn value, so that it is visible between its whiskers."""

TOOLTIP = """point => {
  const [, low, , value, , high] = point.value.map(one => `${(100 * one).toFixed(1)}%`);
  return `${point.seriesName}: ${value} (${low} to ${high})`;
}"""
"""The tooltip of a point; rendered as text, so that a name is never markup."""


def short(name: str, fingerprint: str) -> str:
    """Return a short name that still distinguishes models of one folder name.

    >>> short("/models/my clip", "0123456789abcdef"), short("clip-01234567", "0123456789abcdef")
    ('my clip (01234567)', 'clip-01234567')
    """
    last = PurePath(name).name
    return last if last.endswith(fingerprint[:8]) else f"{last} ({fingerprint[:8]})"


def data_set_of(one: EvaluationFigure) -> str:
    """Return the display name of a figure's data set."""
    return one.dataset if one.langs is None else f"{one.dataset} ({one.langs})"


def data_sets(measured: Sequence[EvaluationFigure]) -> list[str]:
    """Return the data sets, most evaluated models first, then most recent."""
    models: dict[str, set[str]] = {}
    latest: dict[str, float] = {}
    for one in measured:
        name = data_set_of(one)
        models.setdefault(name, set()).add(one.model)
        latest[name] = max(latest.get(name, 0.0), one.at.timestamp())
    return sorted(models, key=lambda name: (-len(models[name]), -latest[name], name))


def recall(measured: Sequence[EvaluationFigure], names: Mapping[str, str]) -> None:
    """Show the figures of one data set by direction.

    Args:
        names: of the models, by their fingerprints, in display order.
    """
    directions = sorted({one.direction for one in measured}, reverse=True)  # from text to image first
    with ui.element("div").classes("sl-two"):
        for direction in directions:
            _chart(direction, [one for one in measured if one.direction == direction], names)
    rows: list[Row] = []
    for direction in directions:
        for model, name in names.items():
            own = {one.metric: one for one in measured if (one.model, one.direction) == (model, direction)}
            if own:
                any_one = next(iter(own.values()))
                figures = [partial(_figure, own.get(metric)) for metric in METRICS]
                sizes = [f"{any_one.queries:,}", f"{any_one.gallery:,}"]
                judged = partial(_measured_model, short(name, model), any_one)
                rows.append([direction.replace("_", " "), judged, *figures, *sizes])
    head = ("", "model", "recall@1", "recall@5", "recall@10", "MRR", "nDCG@10", "queries", "gallery")
    table(head, rows, numbers=7)
    if len({one.gallery for one in measured}) > len(directions):
        ui.label(
            "The galleries differ in size between models: the larger the gallery, the lower the figures."
        ).classes("sl-warn")


def _measured_model(model: str, any_one: EvaluationFigure) -> None:
    """Show the evaluated model and the time."""
    ui.label(model).style("white-space: nowrap")
    ui.label(moment(any_one.at)).classes("sl-faint").style("white-space: nowrap")


def _figure(one: EvaluationFigure | None) -> None:
    """Show a figure, and below it its interval."""
    ui.label("–" if one is None else share(one.value))
    if one is not None and one.low is not None and one.high is not None:
        ui.label(f"{share(one.low)} to {share(one.high)}").classes("sl-faint")


def _chart(direction: str, measured: Sequence[EvaluationFigure], names: Mapping[str, str]) -> None:
    """Draw recall@k of each model: values, and confidence intervals as whiskers."""
    title = f"Recall, {direction.replace('_', ' ')}"
    by_model = {model: {one.metric: one for one in measured if one.model == model} for model in names}
    series = [
        _series(short(names[model], model), own, COLOURS[number % len(COLOURS)])
        for number, (model, own) in enumerate(by_model.items())
        if own
    ]
    ui.echart(
        {
            "title": {"text": title, "textStyle": {"fontSize": 13, "fontWeight": 550, **GREY}},
            "legend": {"bottom": 0, "textStyle": GREY, "type": "scroll"},
            "tooltip": {"trigger": "item", "renderMode": "richText", "confine": True, ":formatter": TOOLTIP},
            "grid": {"left": 44, "right": 12, "top": 36, "bottom": 56},
            "xAxis": {"type": "category", "data": [f"@{k}" for k in CUTOFFS], "axisLabel": GREY},
            "yAxis": {
                "type": "value",
                "min": 0,
                "max": 1,
                "interval": 0.25,
                "axisLabel": GREY | {":formatter": "value => `${100 * value}%`"},
                "splitLine": {"lineStyle": {"color": "#8a94a033"}},
            },
            "series": series,
            "animation": False,
        }
    ).style("height: 16rem; width: 100%").props(f'role=img aria-label="{title}, with 95% intervals"')


def _series(name: str, own: Mapping[str, EvaluationFigure], colour: str) -> dict[str, Any]:
    """Return one model's values as flat boxes between whiskers."""
    return {
        "type": "boxplot",
        "name": name,
        "data": [_box(own.get(f"recall@{k}")) for k in CUTOFFS],
        "boxWidth": [8, 28],
        "itemStyle": {"color": colour, "borderColor": colour, "borderWidth": 2},
    }


def _box(one: EvaluationFigure | None) -> list[float]:
    if one is None:
        return []
    low, high = (one.value if bound is None else bound for bound in (one.low, one.high))
    return [low, max(0.0, one.value - THICK), one.value, min(1.0, one.value + THICK), high]
