"""`sightline`, as a process that ends itself at a kill point."""

from tests.faults import points
from tests.support import forks


def run(kill: str | None, *arguments: str) -> None:
    """Carry out a command line; does not come back where it has a kill point that is met."""
    if kill is not None:
        points.arm(kill)
    forks.command_line(*arguments)
