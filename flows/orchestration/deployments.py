"""Deploy the flows, and close the runs of a killed server."""

from contextlib import suppress
from typing import Any

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import (
    ConcurrencyLimitConfig,
    ConcurrencyLimitStrategy,
    DeploymentSchedule,
    State,
    StateType,
)
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed
from prefect.types.entrypoint import EntrypointType

from flows.config.settings import Settings
from flows.orchestration.flows import ON_REQUEST, SCHEDULED
from flows.orchestration.hooks import crashed

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
    left = client.read_flow_runs(
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[SCHEDULED_NAME, ON_REQUEST_NAME])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[*ACTIVE]))),
    )
    known = (*SCHEDULED, *ON_REQUEST)
    flows = {client.read_flow_by_name(flow.name).id: flow for flow in known} if left else {}
    for run in left:
        gone: State[Any] = Crashed(message="its process ended together with the Prefect server")
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
