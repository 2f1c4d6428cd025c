"""The flows that run on a schedule: Prefect around plain functions, and who is told when one fails.

What they do is imported when one runs, in a process of its own: whoever only serves them stays small.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, ParamSpec
from uuid import UUID

from prefect import Flow, flow
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
    FlowRun,
    State,
    StateType,
)
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run as current
from prefect.states import Completed, Crashed
from prefect.types.entrypoint import EntrypointType
from sqlalchemy.orm import Session

from flows.config.settings import Settings, load_settings
from flows.resources.connections import open_catalog
from storage.postgres import runs
from storage.postgres.locks import Busy

DEPLOYMENT = "scheduled"
ASKED = "asked"
"""The name of the deployments that nothing but a person starts."""

OWN_SCHEDULE = "settings"
"""The one of a deployment's schedules that the settings have; others are those of whoever added them."""

SKIPPED = "Skipped"
"""The state of a run that found another process at the same work."""

EVENT = "sightline.run.failed"
AT_WORK = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)

Work = Callable[[Settings, UUID | None], dict[str, Any]]
Outcome = dict[str, Any] | State[Any]
Given = ParamSpec("Given")


def failed(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Put on record and tell Prefect that a run has failed; runs in its process."""
    settle(flow, flow_run, state, "failed")


def crashed(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Put on record and tell Prefect that a run's process is gone; runs in the process that started it."""
    settle(flow, flow_run, state, "crashed")


def cancelled(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001 (Prefect's)
    """Put on record that somebody cancelled a run; nobody needs to be told."""
    with open_catalog(load_settings()) as engine, Session(engine) as session, session.begin():
        runs.close_cancelled(session, flow_run.id, state.message or "")


def settle(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any], outcome: str) -> None:
    """Send the event first: it needs no Postgres, which may be what failed."""
    deployment = f"prefect.deployment.{flow_run.deployment_id}"
    emit_event(
        EVENT,
        resource={"prefect.resource.id": f"sightline.flow.{flow.name}", "prefect.resource.name": flow.name},
        related=[
            {
                "prefect.resource.id": f"prefect.flow-run.{flow_run.id}",
                "prefect.resource.role": "flow-run",
                "prefect.resource.name": flow_run.name,
            },
            {"prefect.resource.id": deployment, "prefect.resource.role": "deployment"},
        ],
        payload={"flow": flow.name, "outcome": outcome, "why": state.message or ""},
    )
    close(flow, flow_run, state, outcome)


def close(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any], outcome: str) -> None:
    """Have `runs` say how a run ended."""
    with open_catalog(load_settings()) as engine, Session(engine) as session, session.begin():
        runs.close_failed(session, flow.name, flow_run.id, outcome, state.message or "")


def carried_out(work: Work) -> Outcome:
    """Return what `work` has done; that another of its kind is at work already is no failure."""
    try:
        return work(load_settings(), UUID(current.id) if current.id else None)
    except Busy as error:
        return Completed(name=SKIPPED, message=str(error))


def told(body: Callable[Given, Outcome]) -> Flow[Given, Outcome]:
    """Return the flow of that name, whose failures are put on record and told."""
    made = flow(name=body.__name__, on_failure=[failed], on_crashed=[crashed], on_cancellation=[cancelled])
    return made(body)


@told
def ingest() -> Outcome:
    """Read every source again, from where it was ingested last and with what was asked for then."""
    from flows.orchestration import scheduled_jobs

    return carried_out(scheduled_jobs.ingest)


@told
def evaluate() -> Outcome:
    """Measure the model in use on what it has not learned from."""
    from flows.orchestration import scheduled_jobs

    return carried_out(scheduled_jobs.evaluate)


@told
def reconcile() -> Outcome:
    """Compare Postgres and Qdrant, and change nothing; fails when they differ."""
    from flows.orchestration import scheduled_jobs

    return carried_out(scheduled_jobs.reconcile)


@told
def finetune() -> Outcome:
    """Train a candidate; if it passes the gate, have searches use it."""
    from flows.orchestration.improve import improve

    return carried_out(improve)


@told
def backup() -> Outcome:
    """Write a backup to SIGHTLINE_BACKUP_URL."""
    from flows.orchestration import scheduled_jobs

    return carried_out(scheduled_jobs.backup)


@told
def prove() -> Outcome:
    """Restore the latest backup into throw-away stores, and compare them."""
    from flows.orchestration import scheduled_jobs

    return carried_out(scheduled_jobs.prove)


@told
def purge() -> Outcome:
    """Remove what nothing needs any more, unless that is suspiciously much."""
    from flows.orchestration import scheduled_jobs

    return carried_out(scheduled_jobs.purge)


@told
def promote(model: str, force: bool = False) -> Outcome:
    """Decide whether searches may use a candidate."""
    from flows.orchestration import requested_jobs

    return carried_out(partial(requested_jobs.promote, model=model, force=force))


@told
def reindex(model: str, force: bool = False) -> Outcome:
    """Have searches use another model: fill its collection, verify it, switch."""
    from flows.orchestration import requested_jobs

    return carried_out(partial(requested_jobs.reindex, model=model, force=force))


@told
def rollback() -> Outcome:
    """Have searches use the model that they used before."""
    from flows.orchestration import requested_jobs

    return carried_out(requested_jobs.rollback)


@told
def repair() -> Outcome:
    """Mend what differs between Postgres and Qdrant, unless that deletes suspiciously much."""
    from flows.orchestration import requested_jobs

    return carried_out(requested_jobs.repair)


@told
def retry(reason: str | None = None, source: str | None = None, rejects: list[UUID] | None = None) -> Outcome:
    """Try again what could not be taken in: what is open for a reason, of a source, or just these."""
    from flows.orchestration import requested_jobs

    return carried_out(partial(requested_jobs.retry, reason=reason, source=source, rejects=rejects))


FLOWS = (ingest, evaluate, reconcile, finetune, backup, prove, purge)
ON_REQUEST = (promote, reindex, rollback, repair, retry)


def deployments(settings: Settings, client: SyncPrefectClient) -> list[RunnerDeployment]:
    """Return what Prefect is to know of the flows, with what it was told elsewhere kept as it is.

    Whatever somebody paused stays paused, and a schedule that somebody added stays.
    """
    crons = settings.schedules.model_dump()
    scheduled = [deployment_of(flow, crons[flow.name], client) for flow in FLOWS]
    flows: tuple[Flow[..., Outcome], ...] = ON_REQUEST
    return [*scheduled, *(on_request(flow) for flow in flows)]


def on_request(flow: Flow[..., Outcome]) -> RunnerDeployment:
    """Return the deployment of a flow that a person starts; one that is asked for twice is done twice."""
    in_turn = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
    return RunnerDeployment.from_flow(
        flow, ASKED, concurrency_limit=in_turn, entrypoint_type=EntrypointType.MODULE_PATH, tags=["sightline"]
    )


def deployment_of(flow: Flow[[], Outcome], cron: str | None, client: SyncPrefectClient) -> RunnerDeployment:
    """Return one of them; without a cron it runs when somebody says so."""
    known, paused = _known(flow, client)
    schedules = [_as_it_is(one) for one in known if one.slug != OWN_SCHEDULE]
    own = next((one for one in known if one.slug == OWN_SCHEDULE), None)
    if cron is not None:
        active = own is None or own.active
        when = CronSchedule(cron=cron, timezone="UTC")
        schedules.append(DeploymentScheduleCreate(schedule=when, active=active, slug=OWN_SCHEDULE))
    elif own is not None and own.deployment_id is not None:
        client.delete_deployment_schedule(own.deployment_id, own.id)
    return RunnerDeployment.from_flow(
        flow,
        DEPLOYMENT,
        schedules=schedules,
        paused=paused,
        concurrency_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
        ),
        entrypoint_type=EntrypointType.MODULE_PATH,
        tags=["sightline"],
    )


def close_left(client: SyncPrefectClient) -> None:
    """Close the runs that Prefect holds to be running; to be called where none of them can be.

    They are those of a server that was killed together with its flows. Should one live on all the same, it
    has its lock still, and the next run of its kind is skipped.
    """
    left = client.read_flow_runs(
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[DEPLOYMENT, ASKED])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[*AT_WORK]))),
    )
    known: tuple[Flow[..., Outcome], ...] = (*FLOWS, *ON_REQUEST)
    flows = {client.read_flow_by_name(flow.name).id: flow for flow in known} if left else {}
    for run in left:
        gone: State[Any] = Crashed(message="its process ended together with the Prefect server")
        client.set_flow_run_state(run.id, gone, force=True)
        if run.flow_id in flows:
            crashed(flows[run.flow_id], run, gone)


def _known(flow: Flow[[], Outcome], client: SyncPrefectClient) -> tuple[list[DeploymentSchedule], bool]:
    """Return the schedules that Prefect has for a flow, and whether all of them are paused."""
    with suppress(ObjectNotFound):
        found = client.read_deployment_by_name(f"{flow.name}/{DEPLOYMENT}")
        return found.schedules, found.paused
    return [], False


def _as_it_is(one: DeploymentSchedule) -> DeploymentScheduleCreate:
    return DeploymentScheduleCreate(
        schedule=one.schedule,
        active=one.active,
        max_scheduled_runs=one.max_scheduled_runs,
        parameters=one.parameters,
        slug=one.slug or str(one.id),
    )
