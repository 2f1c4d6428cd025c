"""What every page has at hand."""

from asyncio import to_thread
from contextlib import AbstractContextManager
from dataclasses import dataclass

from flows.orchestration.prefect_client import Prefect, open_prefect
from flows.service.observer import Observer
from flows.service.pool import Backend


@dataclass(frozen=True, slots=True)
class ConsoleContext:
    """The stores, what was seen of them last, and Prefect."""

    backend: Backend
    observer: Observer
    protected: bool
    """Whether somebody signed in with a password, and can sign out."""

    async def first_observation(self) -> None:
        """Return once everything has been looked at; a store that is slow to answer holds nobody else up."""
        await to_thread(lambda: self.observer.seen)

    def prefect(self) -> AbstractContextManager[Prefect]:
        """Open the Prefect server that runs the schedules.

        Raises:
            NothingServes: none does.
        """
        return open_prefect(self.backend.settings.home)
