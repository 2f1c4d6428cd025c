"""Format durations, times and shares for pages."""

from datetime import UTC, datetime

MINUTE, HOUR, DAY = 60, 3600, 86400


def duration(seconds: float | None) -> str:
    """Format a duration in its two largest units.

    >>> duration(0.042), duration(3.14159), duration(75), duration(3 * HOUR + 60), duration(2 * DAY + HOUR)
    ('42 ms', '3.1 s', '1 min 15 s', '3 h 1 min', '2 d 1 h')
    >>> duration(None)
    '–'
    """
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < MINUTE:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, name, smaller, rest in (
        (DAY, "d", HOUR, "h"),
        (HOUR, "h", MINUTE, "min"),
        (MINUTE, "min", 1, "s"),
    ):
        if whole >= unit:
            left = whole % unit // smaller
            return f"{whole // unit} {name}" + (f" {left} {rest}" if left else "")
    return f"{whole} s"


def ago(then: datetime | None, now: datetime) -> str:
    """Format the time since a moment.

    >>> ago(datetime(2026, 1, 1, 11), datetime(2026, 1, 1, 12, 5))
    '1 h 5 min ago'
    >>> ago(None, datetime(2026, 1, 1))
    'never'
    """
    if then is None:
        return "never"
    seconds = (now - then).total_seconds()
    return "just now" if seconds < 1 else f"{duration(seconds)} ago"


def moment(then: datetime) -> str:
    """Format a moment in UTC.

    >>> moment(datetime.fromisoformat("2026-01-01T12:30:15+01:00"))
    '2026-01-01 11:30 UTC'
    """
    return f"{then.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def share(part: float | None) -> str:
    """Format a share as a percentage.

    >>> share(0.7351), share(None)
    ('73.5%', '–')
    """
    return "–" if part is None else f"{part:.1%}"
