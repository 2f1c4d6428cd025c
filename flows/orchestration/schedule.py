"""What runs on a schedule, and when it runs next. Knows no Prefect, which takes seconds to import."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from flows.config.cron import next_time
from flows.config.settings import Settings


@dataclass(frozen=True, slots=True)
class Planned:
    """One flow, and when it runs."""

    flow: str
    cron: str | None
    next: datetime | None
    paused: bool


@dataclass(frozen=True, slots=True)
class Served:
    """What is served, and where one can watch it."""

    ui: str
    planned: tuple[Planned, ...]
    password_file: str | None = None
    """What Prefect's pages ask for; None of a server that is not ours."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, told: Mapping[str, Any]) -> "Served":
        planned = (
            Planned(
                one["flow"],
                one["cron"],
                None if one["next"] is None else datetime.fromisoformat(one["next"]),
                one["paused"],
            )
            for one in told["planned"]
        )
        return cls(told["ui"], tuple(planned), told["password_file"])


def planned(settings: Settings, paused: "set[str | None]", now: datetime) -> tuple[Planned, ...]:
    """Return what the settings say of each flow, and when it runs next."""
    crons: dict[str, str | None] = settings.schedules.model_dump()
    return tuple(
        Planned(flow, cron, None if cron is None else next_time(cron, now), flow in paused)
        for flow, cron in crons.items()
    )
