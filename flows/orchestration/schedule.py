"""Compute the schedules of the flows, without importing Prefect."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from flows.config.cron import next_time
from flows.config.settings import Settings


@dataclass(frozen=True, slots=True)
class ScheduledFlow:
    """Represent the schedule of one flow."""

    flow: str
    cron: str | None
    next: datetime | None
    paused: bool


@dataclass(frozen=True, slots=True)
class ServedFlows:
    """Represent the served flows and the address of Prefect's pages."""

    ui: str
    planned: tuple[ScheduledFlow, ...]
    password_file: str | None = None
    """File with the password of Prefect's pages; None if the server is not embedded."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, document: Mapping[str, Any]) -> "ServedFlows":
        planned = (
            ScheduledFlow(
                one["flow"],
                one["cron"],
                None if one["next"] is None else datetime.fromisoformat(one["next"]),
                one["paused"],
            )
            for one in document["planned"]
        )
        return cls(document["ui"], tuple(planned), document["password_file"])


def plan_flows(settings: Settings, paused: "set[str | None]", now: datetime) -> tuple[ScheduledFlow, ...]:
    """Return the cron and the next run of each flow."""
    crons: dict[str, str | None] = settings.schedules.model_dump()
    return tuple(
        ScheduledFlow(flow, cron, None if cron is None else next_time(cron, now), flow in paused)
        for flow, cron in crons.items()
    )
