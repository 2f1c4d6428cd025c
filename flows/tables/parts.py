"""What tables are made of, and how they are printed."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console, RenderableType
from rich.table import Table

PLAIN_WIDTH = 120
"""How wide tables are where there is no terminal to ask."""


def show(*parts: RenderableType) -> None:
    """Print `parts` on standard output."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=PLAIN_WIDTH)
    console.print(*parts, sep="\n")


def table_of(*columns: str, numbers: int = 0) -> Table:
    """Return an empty table without lines; the first `numbers` columns are set to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position < numbers else "left", overflow="fold")
    return table


def busy_line(shares: Mapping[str, float]) -> str:
    """Return how much of the time each stage was at work, in a line."""
    busiest = sorted(shares.items(), key=lambda share: (-share[1], share[0]))
    return "at work: " + ", ".join(f"{name} {share:.0%}" for name, share in busiest if share >= 0.005)
