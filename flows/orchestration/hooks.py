"""Record and report how the Prefect runs of deployments end."""

from typing import Any

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.events import emit_event
from sqlalchemy.orm import Session

from flows.config.settings import load_settings
from flows.resources.connections import open_catalog
from storage.postgres import runs

EVENT = "sightline.run.failed"


def failed(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Record and report a failed run; called in its process."""
    settle(flow, flow_run, state, "failed")


def crashed(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Record and report a crash; called in the parent process."""
    settle(flow, flow_run, state, "crashed")


def cancelled(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001 (Prefect's)
    """Record a cancelled run, without an event: a person did it."""
    if flow_run.deployment_id is not None:
        with open_catalog(load_settings()) as engine, Session(engine) as session, session.begin():
            runs.close_cancelled(session, flow_run.id, state.message or "")


def settle(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any], outcome: str) -> None:
    """Report and record the failed run of a deployment.

    A command reports its own. The event comes first: it needs no Postgres, which may be what failed.
    """
    if flow_run.deployment_id is None:
        return
    emit_event(
        EVENT,
        resource={"prefect.resource.id": f"sightline.flow.{flow.name}", "prefect.resource.name": flow.name},
        related=[
            {
                "prefect.resource.id": f"prefect.flow-run.{flow_run.id}",
                "prefect.resource.role": "flow-run",
                "prefect.resource.name": flow_run.name,
            },
            {
                "prefect.resource.id": f"prefect.deployment.{flow_run.deployment_id}",
                "prefect.resource.role": "deployment",
            },
        ],
        payload={"flow": flow.name, "outcome": outcome, "why": state.message or ""},
    )
    with open_catalog(load_settings()) as engine, Session(engine) as session, session.begin():
        runs.close_failed(session, flow.name, flow_run.id, outcome, state.message or "")
