"""Bundle the services that every page uses."""

from asyncio import to_thread
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from flows.orchestration.prefect_client import PrefectServer, open_prefect
from flows.service.observer import Observer
from flows.service.pool import Backend


@dataclass(frozen=True, slots=True)
class ConsoleContext:
    """Hold the stores, the last observation, and access to Prefect."""

    backend: Backend
    observer: Observer
    protected: bool
    """Whether users sign in with a password, and can sign out."""

    starting: set[str] = field(default_factory=set)
    """Starts of flows that Prefect has not accepted yet, by flow and parameters."""

    async def first_observation(self) -> None:
        """Wait for the first observation, in a thread."""
        await to_thread(lambda: self.observer.latest)

    def prefect(self) -> AbstractContextManager[PrefectServer]:
        """Open the Prefect server that runs the schedules.

        Raises:
            NothingServes: no server runs the schedules.
        """
        return open_prefect(self.backend.settings.home)
