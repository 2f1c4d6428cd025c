"""Snapshot running and scheduled flows, shared by all open pages."""

from asyncio import to_thread
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from threading import Lock
from time import monotonic
from uuid import UUID

from flows.console.context import ConsoleContext
from flows.orchestration.prefect_client import ActiveRun, DeployedFlow, NothingServes, SkippedRun
from storage.errors import StoreUnavailable
from storage.postgres import runs
from storage.postgres.run_totals import COMPARISON
from storage.postgres.runs import Run

FRESH_S = 1.0
SKIPPED_FOR = timedelta(minutes=10)
"""How long a skipped run is reported."""


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """Hold the runs in progress, from Postgres and Prefect, at one time."""

    at: datetime
    runs: tuple[Run, ...] = ()
    """Runs on record that have not ended, oldest first."""

    begun: Mapping[UUID, ActiveRun] = field(default_factory=dict)
    """By id, the runs that Prefect has begun or accepted."""

    ending: frozenset[UUID] = frozenset()
    """Runs that Prefect has ended, though the run on record has not been closed yet."""

    recorded: frozenset[UUID] = frozenset()
    """Those of Prefect's runs that are on record."""

    skipped: tuple[SkippedRun, ...] = ()
    deployed: tuple[DeployedFlow, ...] = ()
    postgres_problem: str | None = None
    prefect_problem: str | None = None

    @property
    def soon(self) -> list[ActiveRun]:
        """Return the runs that Prefect has accepted, not on record yet."""
        return [one for id, one in self.begun.items() if id not in self.recorded]

    def prefect_run(self, run: Run) -> ActiveRun | None:
        """Return the Prefect run of a run.

        None where Prefect did not begin it, and cannot cancel it.
        """
        return None if run.prefect_run_id is None else self.begun.get(run.prefect_run_id)

    def is_active(self, flow: str) -> bool:
        """Return whether a run of a flow is running or about to.

        A second one would have nothing to do.
        """
        on_record = any(name_of(run) == flow and run.source is None for run in self.runs)
        return on_record or any(one.flow == flow for one in self.begun.values())


def name_of(run: Run) -> str:
    """Return the display name of a run's flow.

    A repair is recorded as the comparison that it begins with.
    """
    return "repair" if run.flow == COMPARISON and run.options.get("repair") else run.flow


class RunWatcher:
    """Read snapshots on request, at most one a second."""

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        self._turn = Lock()
        self._seen: RunSnapshot | None = None
        self._until = 0.0

    async def read(self) -> RunSnapshot:
        """Return a snapshot at most a second old."""
        return await to_thread(self._read)

    async def refresh(self) -> RunSnapshot:
        """Return a new snapshot, after an action."""
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
    """Read a snapshot; an unavailable service is reported as a problem."""
    at = datetime.now(UTC)
    try:
        with context.backend.sessions() as sessions:
            with sessions() as session:
                snapshot = tuple(runs.running(session))
            seen = read_prefect(context, at, snapshot)
            with sessions() as session:
                recorded = frozenset(runs.recorded_prefect_runs(session, seen.begun.keys()))
    except StoreUnavailable as error:
        return replace(read_prefect(context, at, ()), postgres_problem=str(error))
    return replace(seen, runs=snapshot, recorded=recorded)


def read_prefect(context: ConsoleContext, at: datetime, snapshot: tuple[Run, ...]) -> RunSnapshot:
    """Read the runs in progress and scheduled from Prefect."""
    try:
        with context.prefect() as prefect:
            begun = {one.id: one for one in prefect.active_runs()}
            other = {one.prefect_run_id for one in snapshot if one.prefect_run_id} - begun.keys()
            ending = frozenset(prefect.ours(other)) if other else frozenset[UUID]()
            deployed, skipped = tuple(prefect.deployed()), tuple(prefect.skipped(at - SKIPPED_FOR))
    except NothingServes as error:
        return RunSnapshot(at, prefect_problem=str(error))
    return RunSnapshot(at, begun=begun, ending=ending, skipped=skipped, deployed=deployed)
