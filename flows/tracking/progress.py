"""Report progress, and show it as bars on a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich import progress as bars
from rich.console import Console

Steps = Callable[[int], None]
"""Called with the number of steps completed since the last call."""


class Progress(Protocol):
    """Receive the stage of some work, the steps completed and their total."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report one state; a `total` of 0 means that it is unknown."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Discard a progress report."""


def no_steps(steps: int) -> None:
    """Discard a number of steps."""


def stage_steps(progress: Progress, stage: str, total: int) -> Steps:
    """Return a step counter that reports the progress of one stage."""
    done = 0

    def step(steps: int) -> None:
        nonlocal done
        done += steps
        progress(stage, done, total)

    return step


@contextmanager
def progress_bar(title: str, total: int | None = None) -> Iterator[Steps]:
    """Show one bar, and yield the function that advances it."""
    with _open_bars() as shown:
        bar = shown.add_task(title, total=total)
        yield lambda steps: shown.advance(bar, steps)


@contextmanager
def stage_bars(title: str) -> Iterator[Progress]:
    """Show one bar for each stage of some work."""
    with _open_bars() as shown:
        tasks: dict[str, bars.TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = shown.add_task(f"{title}: {stage}")
            shown.update(tasks[stage], completed=done, total=total or None)

        yield report


def _open_bars() -> bars.Progress:
    console = Console(stderr=True)
    return bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
