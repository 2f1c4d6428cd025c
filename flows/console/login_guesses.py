"""Limit wrong passwords by client address."""

from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Network, ip_address
from math import ceil
from time import monotonic

BURST = 30
EVERY_S = 6.0
"""After `BURST` wrong passwords, one more is allowed each time this has passed."""

MOST_ADDRESSES = 4096


class Guesses:
    """Count wrong passwords in a token bucket for each address.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._free_at: OrderedDict[str, float] = OrderedDict()
        """By address, when all of its wrong passwords expire; the latest is last."""

    def wait_s(self, address: str) -> int:
        """Return the seconds until `address` may try a password; 0 for now."""
        left_s = self._free_at.get(_network(address), 0.0) - self._clock() - (BURST - 1) * EVERY_S
        return max(0, ceil(left_s))

    def count_wrong(self, address: str) -> None:
        """Count a wrong password of `address`."""
        network, now = _network(address), self._clock()
        self._free_at[network] = max(now, self._free_at.get(network, now)) + EVERY_S
        self._free_at.move_to_end(network)
        while len(self._free_at) > MOST_ADDRESSES:
            self._free_at.popitem(last=False)


def _network(address: str) -> str:
    """Return the network of one client: of IPv6 a /64.

    >>> _network("2001:db8::7"), _network("192.0.2.7")
    ('2001:db8::/64', '192.0.2.7')
    """
    try:
        found = ip_address(address)
    except ValueError:
        return address
    return address if found.version == 4 else str(IPv6Network((int(found), 64), strict=False))
