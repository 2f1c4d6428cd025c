"""Run the benchmarks: `python -m tests.bench`, or some of them by name; each prints a table as it goes.

All figures are of this machine, in one run; compare lines of one table, not of two machines.
"""

import json
import os
import platform
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from tests.bench import finetune, growth, recall, search, share, stream
from tests.bench.material import Row

BENCHMARKS = {
    module.__name__.rsplit(".", 1)[-1]: module for module in (stream, share, growth, search, recall, finetune)
}


def main() -> None:
    parser = ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all by default"
    )
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="where all figures go")
    asked = parser.parse_args()
    if unknown := set(asked.names) - BENCHMARKS.keys():
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(", ".join(f"{name}: {value}" for name, value in machine().items()))
    figures: dict[str, object] = {"machine": machine()}
    for name in asked.names or BENCHMARKS:
        figures[name] = tell(console, BENCHMARKS[name].__doc__ or name, BENCHMARKS[name].run)
        asked.json.write_text(json.dumps(figures, indent=2) + "\n")
    console.print(f"\nall of it: {asked.json}")


def tell(console: Console, title: str, run: Callable[[], Iterator[Row]]) -> list[Row]:
    """Run one benchmark; print its title, and its table in the end."""
    console.print(f"\n{title.strip()}\n")
    rows = []
    with console.status("measuring"):
        rows.extend(run())
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, value in rows[0].items():
        table.add_column(name, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int | float) else value for value in row.values()))
    console.print(table)
    return rows


def machine() -> dict[str, object]:
    """Return what figures depend on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "device": device,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
