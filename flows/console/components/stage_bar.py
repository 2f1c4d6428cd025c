"""Show the time per stage of a run as a stacked bar."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import accumulate, chain
from typing import Any

from nicegui import ui

from flows.console.format import duration
from storage.postgres.runs import Run

TOTAL = "total"
COLOURS = {
    "read": 0,
    "plan": 1,
    "decode": 2,
    "embed": 3,
    "upsert": 4,
    "mark": 5,
    "store": 6,
}
"""The colour `--stage-N` of each ingest stage; those of other flows follow from their position."""

MANY_COLOURS = 8


def stages_of(run: Run) -> list[tuple[str, float]]:
    """Return the stages of a run with their seconds, in pipeline order."""
    order = list(COLOURS)
    taken = [(name, float(seconds)) for name, seconds in run.seconds.items() if name != TOTAL and seconds]
    return sorted(taken, key=lambda stage: order.index(stage[0]) if stage[0] in order else len(order))


def stages_text(stages: Sequence[tuple[str, float]]) -> str:
    """Return the alternative text of a bar.

    >>> stages_text([("read", 0.5), ("embed", 90.0)])
    'Seconds per stage: read 500 ms, embed 1 min 30 s'
    """
    return "Seconds per stage: " + ", ".join(f"{name} {duration(seconds)}" for name, seconds in stages)


def bar(stages: Sequence[tuple[str, float]], *, slim: bool = False) -> None:
    """Draw one bar with stages in proportion to their time."""
    words = stages_text(stages)
    drawn = ui.element("div").classes("sl-bar" + (" sl-slim" if slim else ""))
    drawn.props["role"], drawn.props["aria-label"], drawn.props["title"] = "img", words, words
    drawn.style(f"background: {_gradient(stages)}")


def _gradient(stages: Sequence[tuple[str, float]]) -> str:
    """Return the bar as one CSS background.

    An element for each part would cost more than the rest of a row.
    """
    ends = [*accumulate(seconds for _, seconds in stages)]
    parts = (
        f"{_colour(name, place)} {(end - seconds) / ends[-1]:.2%} {end / ends[-1]:.2%}"
        for place, ((name, seconds), end) in enumerate(zip(stages, ends, strict=True))
    )
    return f"linear-gradient(to right, {', '.join(parts)})"


def legend(stages: Sequence[tuple[str, float]]) -> None:
    """Show the colours of a bar, with the seconds."""
    with ui.element("div").classes("sl-row sl-legend"):
        for place, (name, seconds) in enumerate(stages):
            with ui.element("span").classes("sl-key"):
                ui.element("span").classes("sl-dot").style(f"background: {_colour(name, place)}")
                ui.label(f"{name} {duration(seconds)}")


def duration_s(run: Run, now: datetime) -> float:
    """Return the seconds of a run, until now if it still runs."""
    return ((run.ended or now) - run.started).total_seconds()


def records_per_second(run: Run, now: datetime) -> str:
    """Return records read per second; a dash without records."""
    read, seconds = run.counts.get("read"), run.seconds.get(TOTAL) or duration_s(run, now)
    return f"{read / seconds:,.1f}" if read and seconds else "–"


def flattened(counts: Mapping[str, Any], within: str = "") -> list[tuple[str, Any]]:
    """Flatten nested counts into one list.

    >>> flattened({"read": 3, "reasons": {"bad_image": 1}})
    [('read', 3), ('reasons: bad_image', 1)]
    """
    each = (
        flattened(value, f"{within}{name}: ") if isinstance(value, Mapping) else [(f"{within}{name}", value)]
        for name, value in counts.items()
    )
    return list(chain.from_iterable(each))


def _colour(name: str, place: int) -> str:
    return f"var(--stage-{COLOURS.get(name, place % MANY_COLOURS)})"
