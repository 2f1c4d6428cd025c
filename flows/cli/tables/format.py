"""Build tables and print them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from flows.tracking.text import UNSEEN, visible

PLAIN_WIDTH = 100_000
"""Width of tables without a terminal: scripts read one row per line, with nothing folded."""

COPIED = frozenset({"id", "run"})
"""Columns of 36 characters that users copy: the others fold before them."""


class SafeConsole(Console):
    """Print control characters by their codes, as a terminal would obey them."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        return super().render(_shown(renderable), options)


def _shown(part: RenderableType) -> RenderableType:
    match part:
        case str():
            return visible(part)
        case Text() if UNSEEN.search(part.plain):
            return Text(visible(part.plain), style=part.style, overflow=part.overflow, end=part.end)
    return part


def show(*parts: RenderableType) -> None:
    """Print to standard output."""
    console = SafeConsole(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = SafeConsole(highlight=False, markup=False, emoji=False, width=PLAIN_WIDTH)
    console.print(*parts, sep="\n")


def table_of(*columns: str, numbers: int = 0) -> Table:
    """Return an empty borderless table; the first `numbers` columns align right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        table.add_column(
            column,
            justify="right" if position < numbers else "left",
            overflow="fold",
            no_wrap=column in COPIED,
        )
    return table


def busy_line(shares: Mapping[str, float]) -> str:
    """Return the share of time of each stage, on one line."""
    busiest = sorted(shares.items(), key=lambda share: (-share[1], share[0]))
    return "busy: " + ", ".join(f"{name} {share:.0%}" for name, share in busiest if share >= 0.005)
