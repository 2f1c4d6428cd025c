"""Plot recall@k by direction and model."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, ScalarFormatter

from embedding.evaluation.bootstrap import Estimate
from flows.evaluation.evaluate import DirectionMetrics, Evaluation
from flows.tracking.file_modes import usual_files

INCHES = 4.6
MARKED = (1, 5, 10)
COLOURS = ("#4269d0", "#ef7b1a", "#3ca951", "#a463f2", "#ff5c6c", "#6b7280")


def write_plot(evaluation: Evaluation, path: Path) -> None:
    """Write the curves of recall@k to an image file.

    Recall@1, @5 and @10 are marked with their 95% intervals.

    Raises:
        ValueError: the suffix of `path` names no known format.
    """
    directions = list(evaluation.models[0].curves)
    figure = Figure(figsize=(INCHES * len(directions) + 0.4, INCHES), layout="constrained")
    panels = figure.subplots(1, len(directions), sharey=True, squeeze=False)[0]
    for panel, direction in zip(panels, directions, strict=True):
        _draw(panel, evaluation, direction)
    panels[0].set_ylabel("recall@k")
    figure.suptitle(f"Recall on {evaluation.dataset}", fontsize=12, fontweight="bold")
    with usual_files():
        figure.savefig(path, dpi=150)


def _draw(panel: Axes, evaluation: Evaluation, direction: str) -> None:
    sizes = None
    for number, model in enumerate(evaluation.models):
        colour = COLOURS[number % len(COLOURS)]
        curve = model.curves[direction]
        panel.plot(range(1, len(curve) + 1), curve, color=colour, linewidth=2, label=model.model)
        sizes = _whole(model.measured, direction)
        for k in MARKED:
            if k <= len(curve):
                found = sizes.figures[f"recall@{k}"]
                panel.vlines(k, *bounds_of(found), color=colour, linewidth=1.2)
                panel.plot(k, found.value, "o", color=colour, markersize=5)
    if sizes is not None:
        title = f"{direction.replace('_', ' ')}\n{sizes.queries:,} queries, gallery of {sizes.gallery:,}"
        panel.set_title(title, fontsize=10)
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.set_xticks([1, 2, 5, 10, 20, 50, 100], minor=False)
    panel.minorticks_off()
    panel.set_xlim(0.9, max(10, len(evaluation.models[0].curves[direction])) * 1.1)
    panel.set_ylim(0, 1)
    panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    panel.set_xlabel("k")
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, loc="lower right")


def bounds_of(figure: Estimate) -> tuple[float, float]:
    """Return the ends of the interval; without one, the value twice.

    >>> bounds_of(Estimate(0.25, 0.0, 0.5)), bounds_of(Estimate(0.25, None, None))
    ((0.0, 0.5), (0.25, 0.25))
    """
    if figure.low is None or figure.high is None:
        return figure.value, figure.value
    return figure.low, figure.high


def _whole(measured: tuple[DirectionMetrics, ...], direction: str) -> DirectionMetrics:
    return next(one for one in measured if one.direction == direction and one.part is None)
