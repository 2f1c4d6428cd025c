"""What runs now and what is about to, as Prefect and Postgres say; one look serves everybody who watches."""

from asyncio import to_thread
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from threading import Lock
from time import monotonic
from uuid import UUID

from flows.console.context import ConsoleContext
from flows.orchestration.prefect_client import Begun, Deployed, NothingServes, Skipped
from flows.service.pool import AWAY
from storage.postgres import runs
from storage.postgres.run_totals import COMPARISON
from storage.postgres.runs import Run

FRESH_S = 1.0
SKIPPED_FOR = timedelta(minutes=10)
"""How long it is told that a run had nothing to do."""


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """One look."""

    at: datetime
    runs: tuple[Run, ...] = ()
    """Those that say on record that they go on, oldest first."""

    begun: Mapping[UUID, Begun] = field(default_factory=dict)
    """By id what Prefect has begun or is about to."""

    ending: frozenset[UUID] = frozenset()
    """What Prefect has ended, though the run on record has not been closed yet."""

    recorded: frozenset[UUID] = frozenset()
    """Which of these have put a run on record."""

    skipped: tuple[Skipped, ...] = ()
    deployed: tuple[Deployed, ...] = ()
    postgres_problem: str | None = None
    prefect_problem: str | None = None

    @property
    def soon(self) -> list[Begun]:
        """What Prefect has accepted, and of which there is nothing on record yet."""
        return [one for id, one in self.begun.items() if id not in self.recorded]

    def prefect_run(self, run: Run) -> Begun | None:
        """Return what Prefect says of a run; None where it did not begin it, and cannot end it."""
        return None if run.prefect_run_id is None else self.begun.get(run.prefect_run_id)

    def is_active(self, flow: str) -> bool:
        """Whether a run of a flow goes on or is about to, so that a second one would have nothing to do."""
        on_record = any(name_of(run) == flow and run.source is None for run in self.runs)
        return on_record or any(one.flow == flow for one in self.begun.values())


def name_of(run: Run) -> str:
    """Return what a person calls a run: a repair is kept on record as the comparison that it begins with."""
    return "repair" if run.flow == COMPARISON and run.options.get("repair") else run.flow


class RunWatcher:
    """Looks when somebody asks, unless it did just now."""

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        self._turn = Lock()
        self._seen: RunSnapshot | None = None
        self._until = 0.0

    async def read(self) -> RunSnapshot:
        """Return what goes on, at most a second old."""
        return await to_thread(self._read)

    async def refresh(self) -> RunSnapshot:
        """Return what goes on now: something was just done that shows."""
        self._until = 0.0
        return await self.read()

    def _read(self) -> RunSnapshot:
        with self._turn:
            seen = self._seen
            if seen is None or monotonic() >= self._until:
                seen = self._seen = read_snapshot(self._context)
                self._until = monotonic() + FRESH_S
            return seen


def read_snapshot(context: ConsoleContext) -> RunSnapshot:
    """Return what goes on now; of a store that is away, or of Prefect, there is a problem instead."""
    at = datetime.now(UTC)
    try:
        with context.backend.sessions() as sessions:
            with sessions() as session:
                snapshot = tuple(runs.running(session))
            told = read_prefect(context, at, snapshot)
            with sessions() as session:
                recorded = frozenset(runs.recorded_prefect_runs(session, told.begun.keys()))
    except AWAY as error:
        return replace(read_prefect(context, at, ()), postgres_problem=str(error))
    return replace(told, runs=snapshot, recorded=recorded)


def read_prefect(context: ConsoleContext, at: datetime, snapshot: tuple[Run, ...]) -> RunSnapshot:
    """Return what Prefect says of the runs that go on, and of those that are about to."""
    try:
        with context.prefect() as prefect:
            begun = {one.id: one for one in prefect.begun()}
            other = {one.prefect_run_id for one in snapshot if one.prefect_run_id} - begun.keys()
            ending = frozenset(prefect.ours(other)) if other else frozenset[UUID]()
            deployed, skipped = tuple(prefect.deployed()), tuple(prefect.skipped(at - SKIPPED_FOR))
    except NothingServes as error:
        return RunSnapshot(at, prefect_problem=str(error))
    return RunSnapshot(at, begun=begun, ending=ending, skipped=skipped, deployed=deployed)
