"""List, start, cancel and pause flows through the API of Prefect."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

from httpx import HTTPStatusError, TransportError
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterEndTime,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort, LogSort
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL
from prefect.states import Cancelling

from flows.config.prefect_env import ui_url
from flows.orchestration.deployments import ON_REQUEST_NAME, OWN_SCHEDULE, SCHEDULED_NAME, TAG
from flows.orchestration.flows import ON_REQUEST, SCHEDULED, SKIPPED
from flows.orchestration.server_access import find_server, password_file
from flows.tracking.retry_policy import first_line
from storage.errors import NotFound, SightlineError

WAITING = (StateType.SCHEDULED, StateType.PENDING)
AT_WORK = (StateType.RUNNING, StateType.CANCELLING)
MOST_LOGS = 200
"""Most lines in one response of Prefect."""


class NothingServes(SightlineError):
    """Report that no Prefect server serves the data directory."""

    retryable = True
    http_status = 503


class NoSuchRun(NotFound):
    """Report a run that Prefect does not know."""


@dataclass(frozen=True, slots=True)
class DeployedFlow:
    """Represent a flow that can be started."""

    flow: str
    id: UUID
    cron: str | None
    next: datetime | None
    paused: bool
    scheduled: bool
    """Whether it can have a schedule; others run on request only."""


@dataclass(frozen=True, slots=True)
class ActiveRun:
    """Represent a run that is active or about to begin."""

    id: UUID
    flow: str
    state: str
    parameters: dict[str, Any]
    expected: datetime | None
    started: datetime | None


@dataclass(frozen=True, slots=True)
class SkippedRun:
    """Represent a run that was skipped in favour of another process."""

    id: UUID
    flow: str
    why: str
    at: datetime


@dataclass(frozen=True, slots=True)
class LogLine:
    """Represent one line of a run's log."""

    at: datetime
    level: int
    """Level of Python's logging: 30 is a warning."""

    message: str


@dataclass(frozen=True)
class PrefectServer:
    """Access the Prefect server of a data directory."""

    client: SyncPrefectClient
    ui: str
    password_file: Path | None = None
    """File with the password of its pages; None if the server is not embedded."""

    def deployed(self) -> list[DeployedFlow]:
        """Return the flows that can be started, scheduled ones first."""
        own = self._own
        coming = self._coming(list(own))
        order = [flow.name for flow in (*SCHEDULED, *ON_REQUEST)]
        deployed = [
            DeployedFlow(
                flow,
                id,
                next(
                    (cron for each in one.schedules if (cron := getattr(each.schedule, "cron", None))), None
                ),
                coming.get(id),
                one.paused or (bool(one.schedules) and not any(each.active for each in one.schedules)),
                one.name == SCHEDULED_NAME,
            )
            for id, (flow, one) in own.items()
        ]
        return sorted(deployed, key=lambda one: (not one.scheduled, order.index(one.flow)))

    def active_runs(self) -> list[ActiveRun]:
        """Return active and requested runs in the order of their start."""
        own = self._own
        states = FlowRunFilterStateType(any_=[*WAITING, *AT_WORK])
        runs = self._runs(list(own), FlowRunFilter(state=FlowRunFilterState(type=states)))
        return [
            ActiveRun(
                run.id,
                own[run.deployment_id][0],
                run.state_name or "",
                run.parameters,
                run.expected_start_time,
                run.start_time,
            )
            for run in runs
            if run.state_type != StateType.SCHEDULED or not run.auto_scheduled
        ]

    def skipped(self, since: datetime) -> list[SkippedRun]:
        """Return the runs skipped since a time, by their end."""
        own = self._own
        found = self._runs(
            list(own),
            FlowRunFilter(
                state=FlowRunFilterState(name=FlowRunFilterStateName(any_=[SKIPPED])),
                end_time=FlowRunFilterEndTime(after_=since),
            ),
        )
        ended = [
            SkippedRun(run.id, own[run.deployment_id][0], run.state.message or "", run.end_time)
            for run in found
            if run.state is not None and run.end_time is not None
        ]
        return sorted(ended, key=lambda one: one.at)

    def ours(self, runs: Collection[UUID]) -> set[UUID]:
        """Return the runs of deployments; those of commands are none."""
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=[*runs]))
        return {one.id for one in self._runs(list(self._own), wanted)}

    def knows(self, run: UUID) -> bool:
        """Return whether the server has a run, with its log and page."""
        try:
            self.client.read_flow_run(run)
        except ObjectNotFound:
            return False
        return True

    def start(self, flow: str, **parameters: Any) -> UUID:
        """Start a flow, and return the id of its run in Prefect.

        Raises:
            NothingServes: the flow is not deployed there.
        """
        name = SCHEDULED_NAME if flow in {one.name for one in SCHEDULED} else ON_REQUEST_NAME
        try:
            deployment = self.client.read_deployment_by_name(f"{flow}/{name}")
        except ObjectNotFound as error:
            raise NothingServes(f"{flow} is not served; run: sightline up") from error
        return self.client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id

    def cancel(self, run: UUID) -> None:
        """Cancel a run; the next run does the rest of its work.

        Raises:
            NoSuchRun: Prefect does not know it.
        """
        try:
            self.client.set_flow_run_state(run, Cancelling(message="cancelled by a person"))
        except ObjectNotFound as error:
            raise NoSuchRun(f"Prefect knows no run {run}; was it started at a terminal?") from error

    def pause(self, flow: str, *, paused: bool) -> None:
        """Pause or resume the schedule of a flow.

        Raises:
            NothingServes: the flow is not deployed there.
        """
        try:
            deployment = self.client.read_deployment_by_name(f"{flow}/{SCHEDULED_NAME}")
        except ObjectNotFound as error:
            raise NothingServes(f"{flow} is not served; run: sightline up") from error
        if paused:
            self.client.pause_deployment(deployment.id)
            return
        self.client.resume_deployment(deployment.id)
        for one in deployment.schedules:
            if one.slug == OWN_SCHEDULE:  # Prefect's own pages pause each schedule by itself
                self.client.update_deployment_schedule(deployment.id, one.id, active=True)

    def log(self, run: UUID, *, after: int = 0) -> list[LogLine]:
        """Return a page of a run's log, after its first `after` lines."""
        own = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run]))
        lines = self.client.read_logs(own, limit=MOST_LOGS, offset=after, sort=LogSort.TIMESTAMP_ASC)
        return [LogLine(one.timestamp, one.level, one.message) for one in lines]

    def page_of(self, run: UUID) -> str:
        """Return the address of a run in Prefect's pages."""
        return f"{self.ui}/runs/flow-run/{run}"

    def login_of(self, run: UUID) -> str | None:
        """Return the sign-in address that leads to a run.

        Without a session the page of a run says 404 instead of asking for the password.
        """
        page = quote(f"/runs/flow-run/{run}", safe="")
        return None if self.password_file is None else f"{self.ui}/login?redirect={page}"

    @cached_property
    def _own(self) -> dict[UUID, tuple[str, DeploymentResponse]]:
        """Return our deployments and their flows by id; read once."""
        tagged = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
        names = {one.id: one.name for one in self.client.read_flows(deployment_filter=tagged)}
        known = {flow.name for flow in (*SCHEDULED, *ON_REQUEST)}
        return {
            one.id: (names[one.flow_id], one)
            for one in self.client.read_deployments(deployment_filter=tagged)
            if one.name in (SCHEDULED_NAME, ON_REQUEST_NAME) and names.get(one.flow_id) in known
        }

    def _coming(self, deployments: list[UUID]) -> dict[UUID, datetime]:
        """Return the next planned run of each deployment."""
        coming: dict[UUID, datetime] = {}
        planned = FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
        )
        for run in self._runs(deployments, planned):
            if run.deployment_id is not None and run.expected_start_time is not None and run.auto_scheduled:
                coming.setdefault(run.deployment_id, run.expected_start_time)
        return coming

    def _runs(self, deployments: list[UUID], wanted: FlowRunFilter) -> Any:
        own = wanted.model_copy(update={"deployment_id": FlowRunFilterDeploymentId(any_=deployments)})
        return self.client.read_flow_runs(flow_run_filter=own, sort=FlowRunSort.EXPECTED_START_TIME_ASC)


@contextmanager
def open_prefect(home: Path) -> Iterator[PrefectServer]:
    """Open the Prefect server of a data directory.

    Raises:
        NothingServes: none does, or it stops answering.
    """
    found = find_server(home)
    if found is None:
        raise NothingServes(
            "nothing runs the flows of this data directory; run: sightline up (or: sightline serve)"
        )
    url, ours = found.url, PREFECT_API_URL.value() is None
    try:
        with SyncPrefectClient(url, auth_string=found.password) as client:
            pages = ui_url(url) if ours else PREFECT_UI_URL.value() or ui_url(url)
            yield PrefectServer(client, pages, password_file(home).absolute() if ours else None)
    except HTTPStatusError as error:
        if error.response.status_code not in (401, 403):
            raise
        raise NothingServes(
            f"Prefect at {url} rejects the password; is PREFECT_API_AUTH_STRING right?"
        ) from error
    except TransportError as error:
        raise NothingServes(f"Prefect at {url} does not answer ({first_line(error)}); try again") from error
