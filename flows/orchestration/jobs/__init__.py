"""Run the jobs without Prefect; each records its run."""

from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def run_here(step: Callable[[], Result]) -> Result:
    """Run a step of a job directly."""
    return step()
