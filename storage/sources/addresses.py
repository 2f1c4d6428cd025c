"""Classify network addresses, to decide which ones a fetch may use."""

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from storage.errors import SightlineError

Address = IPv4Address | IPv6Address

METADATA = frozenset(
    map(ip_address, ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"))
)
"""Where clouds hand their machines credentials: of AWS, Google, Azure and others; of Alibaba; of Azure."""

NOT_PUBLIC = tuple(
    map(
        IPv4Network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
            *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        ),
    )
)
"""Listed here, because the result of `is_global` has changed within releases of Python."""

PUBLIC_6 = IPv6Network("2000::/3")
NOT_PUBLIC_6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
"""Teredo and other protocols' own, documentation, 6to4, documentation."""

NAT64 = IPv6Network("64:ff9b::/96")
COMPATIBLE = IPv6Network("::/96")


class PrivateAddress(SightlineError, OSError):
    """Signal a loopback or private address, which the URL may not reach."""


def parse_address(host: str) -> Address | None:
    """Return the address that `host` spells in any form, or None.

    A host name gives None.

    >>> parse_address("2130706433"), parse_address("127.1"), parse_address("0x7f.1")
    (IPv4Address('127.0.0.1'), IPv4Address('127.0.0.1'), IPv4Address('127.0.0.1'))
    >>> parse_address("example.org")
    """
    bare = host.strip("[]").rstrip(".")
    try:
        return ip_address(bare)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(bare))
    except (OSError, ValueError):  # a name; one with a NUL or a letter that is not ASCII
        return None


def inner_addresses(address: Address) -> tuple[Address, ...]:
    """Return the address, and each IPv4 address embedded in it.

    A gateway would connect to the embedded one.

    >>> inner_addresses(ip_address("64:ff9b::a00:1"))
    (IPv6Address('64:ff9b::a00:1'), IPv4Address('10.0.0.1'))
    """
    if isinstance(address, IPv4Address):
        return (address,)
    inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in NAT64 or address in COMPATIBLE:
        inner.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return (address, *(one for one in inner if one is not None))


def is_metadata(address: Address) -> bool:
    """Return whether a cloud metadata service listens at the address."""
    return any(one in METADATA for one in inner_addresses(address))


def is_public(address: Address) -> bool:
    """Return whether the address is public.

    >>> is_public(ip_address("8.8.8.8")), is_public(ip_address("::ffff:10.0.0.1"))
    (True, False)
    """
    if is_metadata(address):
        return False
    if isinstance(address, IPv4Address):
        return not any(address in network for network in NOT_PUBLIC)
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    return address in PUBLIC_6 and not any(address in network for network in NOT_PUBLIC_6)


def require_public(address: str, host: str) -> None:
    """Reject a loopback or private address.

    Raises:
        PrivateAddress: it is one, or cannot be read as an address.
    """
    found = parse_address(address)
    if found is None or not is_public(found):
        raise PrivateAddress(f"leads to {host}, a private address")


def require_no_metadata(address: str, host: str) -> None:
    """Reject the address of a cloud metadata service.

    Raises:
        PrivateAddress: it is one.
    """
    found = parse_address(address)
    if found is not None and is_metadata(found):
        raise PrivateAddress(f"leads to {host}, where clouds hand out credentials")
