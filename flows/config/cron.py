"""Check crons and compute their times, in UTC and without Prefect."""

import re
from datetime import UTC, datetime, timedelta

from cronsim import CronSim, CronSimError
from pydantic_core import PydanticCustomError

OFF = "off"
UNSUPPORTED = re.compile(r"\dL|LW", re.IGNORECASE)
"""Last Friday and last weekday: Prefect's crons do not support them."""

TWO_WEEKS = timedelta(days=15)


def checked_cron(value: str) -> str | None:
    """Return a valid cron, or None for `off`.

    >>> checked_cron("0 3 * * sun"), checked_cron("off")
    ('0 3 * * sun', None)
    """
    if value.strip().lower() in ("", OFF):
        return None
    try:
        next(CronSim(value, datetime.now(UTC)))
        why = None if len(value.split()) == 5 else "Wrong number of fields"
    except (CronSimError, StopIteration) as error:
        why = str(error) or "It never comes"
    if why is None and UNSUPPORTED.search(value):
        why = "Prefect takes no last weekdays"
    if why is not None:
        raise PydanticCustomError(
            "cron",
            "{value} is no cron ({why}); write minute, hour, day, month and weekday in UTC, such as "
            "'30 3 * * *' for every night at half past three, or off",
            {"value": repr(value), "why": why},
        )
    return value


def next_time(cron: str, now: datetime) -> datetime:
    """Return the next time of a cron after `now`, in UTC.

    >>> str(next_time("30 3 * * *", datetime(2026, 1, 1, 12, tzinfo=UTC)))
    '2026-01-02 03:30:00+00:00'
    """
    return next(CronSim(cron, now.astimezone(UTC)))


def longest_pause(cron: str, now: datetime) -> timedelta:
    """Return the longest interval of a cron within two weeks.

    >>> str(longest_pause("0 8 * * mon-fri", datetime(2026, 1, 1, tzinfo=UTC)))
    '3 days, 0:00:00'
    """
    times = CronSim(cron, now.astimezone(UTC))
    first = last = next(times)
    longest = timedelta(0)
    for time in times:
        longest, last = max(longest, time - last), time
        if time - first > TWO_WEEKS:
            break
    return longest
