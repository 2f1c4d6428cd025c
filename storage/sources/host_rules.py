"""Behave as image hosts ask: name ourselves, keep a rate, wait."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from threading import Lock
from time import monotonic, sleep
from typing import Any

from storage.sources.addresses import parse_address

BUSY = (429, 503)
MAX_HOSTS = 10_000
"""Hosts whose next request is remembered."""

MAX_PAUSE_S = 3_600
"""Longest time that a host is left alone, if it names a later one."""

EVERY_HOST = "*"


def _product() -> str:
    try:
        return f"Sightline/{version('sightline')}"
    except PackageNotFoundError:  # run from a copy of the source
        return "Sightline"


PRODUCT = _product()


@dataclass(frozen=True, slots=True)
class HostRules:
    """Hold the headers, the rate and the waits of image requests."""

    contact: str | None = None
    """URL or e-mail address in the User-Agent."""

    headers: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    """Headers by host; `*` is every host."""

    rate: float = 20
    """Most requests a second to one host."""

    wait_s: float = 0
    """Seconds to wait in all for a host that names a later time."""

    def headers_for(self, host: str, *, is_downgraded: bool = False) -> dict[str, str]:
        """Return the headers of a request to one host.

        A redirect from https to http gets none that are configured: others could read them.

        >>> HostRules(contact="a@b.org", headers={"x.org": {"Cookie": "1"}}).headers_for("y.org").keys()
        dict_keys(['User-Agent'])
        """
        agent = PRODUCT if self.contact is None else f"{PRODUCT} (+{self.contact})"
        if is_downgraded:
            return {"User-Agent": agent}
        return {"User-Agent": agent, **self.headers.get(EVERY_HOST, {}), **self.headers.get(host.lower(), {})}


NO_RULES = HostRules()


def retry_after_s(status: int, header: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds until a busy host wants the next request.

    None where the answer is another one, or names no time.

    >>> retry_after_s(429, "7"), retry_after_s(503, None), retry_after_s(500, "7")
    (7.0, None, None)
    """
    if status not in BUSY or header is None:
        return None
    if header.strip().isascii() and header.strip().isdigit():
        return float(header[:12])
    try:
        then = parsedate_to_datetime(header)
    except ValueError:
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return max(0.0, (then - (now or datetime.now(UTC))).total_seconds())


class Pace:
    """Space the requests to each host; threads share one."""

    def __init__(self) -> None:
        self._next: OrderedDict[str, float] = OrderedDict()
        self._busy: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Of hosts that named a later time: when they first did, and that time."""

        self._lock = Lock()

    def wait(self, host: str, rate: float) -> None:
        """Wait until the host may be sent the next request."""
        sleep(max(0.0, self.reserve(host, rate, monotonic()) - monotonic()))

    def reserve(self, host: str, rate: float, now: float) -> float:
        """Reserve and return the time of the next request.

        This machine has no rate.
        """
        with self._lock:
            at = max(now, self._next.get(host, now), self._busy.get(host, (now, now))[1])
            self._next[host] = at if _is_this_machine(host) else at + 1 / rate
            _keep_newest(self._next, host)
            return at

    def pause(self, host: str, seconds: float) -> None:
        """Send the host no request for so many seconds."""
        with self._lock:
            now = monotonic()
            first, until = self._busy.get(host, (now, now))
            self._busy[host] = first, max(until, now + min(seconds, MAX_PAUSE_S))
            _keep_newest(self._busy, host)

    def resume(self, host: str) -> None:
        """Note that the host answers again."""
        with self._lock:
            self._busy.pop(host, None)

    def left_alone_s(self, host: str, wait_s: float) -> float | None:
        """Return the pause of a host if it is too long.

        It is from `wait_s` after the host first named a later time on: not each image waits so long for it.
        """
        with self._lock:
            now = monotonic()
            first, until = self._busy.get(host, (now, now))
            return until - now if until > now and until > first + wait_s else None


def _keep_newest(times: OrderedDict[str, Any], host: str) -> None:
    times.move_to_end(host)
    while len(times) > MAX_HOSTS:
        times.popitem(last=False)


PACE = Pace()


def _is_this_machine(host: str) -> bool:
    address = parse_address(host)
    return host.lower() == "localhost" or (address is not None and address.is_loopback)
