"""What every page has at hand."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flows.backend import Backend
from flows.observe import Observer
from flows.operations import Prefect, open_prefect


@dataclass(frozen=True, slots=True)
class Desk:
    """The stores, what was seen of them last, and Prefect."""

    backend: Backend
    observer: Observer
    protected: bool
    """Whether somebody signed in with a password, and can sign out."""

    @contextmanager
    def prefect(self) -> Iterator[Prefect]:
        """Open the Prefect server that runs the schedules.

        Raises:
            NothingServes: none does.
        """
        with open_prefect(self.backend.settings.home) as prefect:
            yield prefect
