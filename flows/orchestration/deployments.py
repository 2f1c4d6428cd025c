"""Deploy the flows, and close the runs of a killed server."""

from contextlib import suppress
from typing import Any

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import (
    ConcurrencyLimitConfig,
    ConcurrencyLimitStrategy,
    DeploymentSchedule,
    FlowRun,
    State,
    StateType,
)
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed
from prefect.types.entrypoint import EntrypointType
from sqlalchemy import Engine

from flows.config.settings import Settings
from flows.orchestration.flows import ON_REQUEST, SCHEDULED
from flows.orchestration.hooks import crashed
from flows.resources.abandoned_runs import abandoned_prefect_runs

SCHEDULED_NAME = "scheduled"
ON_REQUEST_NAME = "asked"
TAG = "sightline"
OWN_SCHEDULE = "settings"
"""Slug of the schedule that the settings define; a deployment's other schedules were added by users."""

ACTIVE = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)


def deployments(settings: Settings, client: SyncPrefectClient) -> list[RunnerDeployment]:
    """Return the deployments of all flows.

    A deployment that a user paused stays paused, and a schedule that a user added stays.
    """
    crons = settings.schedules.model_dump()
    scheduled = [deployment_of(flow, crons[flow.name], client) for flow in SCHEDULED]
    return [*scheduled, *(on_request(flow) for flow in ON_REQUEST)]


def on_request(flow: Flow[..., Any]) -> RunnerDeployment:
    """Return the deployment of an unscheduled flow; its requests queue up."""
    in_turn = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
    return RunnerDeployment.from_flow(
        flow,
        ON_REQUEST_NAME,
        concurrency_limit=in_turn,
        entrypoint_type=EntrypointType.MODULE_PATH,
        tags=[TAG],
    )


def deployment_of(flow: Flow[..., Any], cron: str | None, client: SyncPrefectClient) -> RunnerDeployment:
    """Return the deployment of a scheduled flow.

    Args:
        cron: None for on request only.
    """
    known, paused = _known(flow, client)
    schedules = [_unchanged(one) for one in known if one.slug != OWN_SCHEDULE]
    own = next((one for one in known if one.slug == OWN_SCHEDULE), None)
    if cron is not None:
        active = own is None or own.active
        when = CronSchedule(cron=cron, timezone="UTC")
        schedules.append(DeploymentScheduleCreate(schedule=when, active=active, slug=OWN_SCHEDULE))
    elif own is not None and own.deployment_id is not None:
        client.delete_deployment_schedule(own.deployment_id, own.id)
    return RunnerDeployment.from_flow(
        flow,
        SCHEDULED_NAME,
        schedules=schedules,
        paused=paused,
        concurrency_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
        ),
        entrypoint_type=EntrypointType.MODULE_PATH,
        tags=[TAG],
    )


def close_left(client: SyncPrefectClient) -> None:
    """Mark the runs of a killed server as crashed.

    Call it while none can be running. Should the process of one live on, it still has its lock, and the
    next run of its kind is skipped.
    """
    _close(client, _active(client), "its process ended together with the Prefect server")


def close_dead(client: SyncPrefectClient, engine: Engine) -> None:
    """Mark the runs as crashed that the record proves dead.

    For a server that outlives this process: it reports them as running, and keeps the slots of their
    deployments. Of a run that was killed before it began its record nothing is known; its slot is free again
    when Prefect's lease ends.
    """
    if left := _active(client):
        dead = abandoned_prefect_runs(engine, {run.id for run in left})
        _close(client, [run for run in left if run.id in dead], "its process has ended without a report")


def _active(client: SyncPrefectClient) -> list[FlowRun]:
    return client.read_flow_runs(
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[SCHEDULED_NAME, ON_REQUEST_NAME])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[*ACTIVE]))),
    )


def _close(client: SyncPrefectClient, left: list[FlowRun], why: str) -> None:
    """Mark runs as crashed, which gives back their slots; record it."""
    known = (*SCHEDULED, *ON_REQUEST)
    served = {run.flow_id for run in left}
    found = client.read_flows(flow_filter=FlowFilter(id=FlowFilterId(any_=[*served]))) if served else []
    names = {flow.name: flow for flow in known}
    flows = {one.id: names[one.name] for one in found if one.name in names}
    for run in left:
        gone: State[Any] = Crashed(message=why)
        client.set_flow_run_state(run.id, gone, force=True)
        if run.flow_id in flows:
            crashed(flows[run.flow_id], run, gone)


def _known(flow: Flow[..., Any], client: SyncPrefectClient) -> tuple[list[DeploymentSchedule], bool]:
    """Return the known schedules of a flow, and whether it is paused."""
    with suppress(ObjectNotFound):
        found = client.read_deployment_by_name(f"{flow.name}/{SCHEDULED_NAME}")
        return found.schedules, found.paused
    return [], False


def _unchanged(one: DeploymentSchedule) -> DeploymentScheduleCreate:
    return DeploymentScheduleCreate(
        schedule=one.schedule,
        active=one.active,
        max_scheduled_runs=one.max_scheduled_runs,
        parameters=one.parameters,
        slug=one.slug or str(one.id),
    )
