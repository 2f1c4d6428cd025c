"""Check the addresses of servers."""

import ipaddress
import re

from storage.errors import InvalidInput

PSYCOPG = "postgresql+psycopg"
SCHEMES = ("postgresql", "postgres", PSYCOPG)
"""Schemes that mean Postgres; providers print the first two."""

REST = re.compile(
    r"(?:[^:/@]*(?::[^@]*)?@)?(?P<hosts>\[[^\]]*\](?::\d+)?|[^/?]*)(?:/(?P<name>[^?]*))?(?P<query>\?.*)?"
)
HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d+)?")


class BadUrl(InvalidInput):
    """Report a URL that leads to no store."""


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def postgres_url(url: str) -> str:
    """Return the URL of a Postgres database, with its driver.

    >>> postgres_url("postgres://me:secret@db.example/shop?sslmode=require")
    'postgresql+psycopg://me:secret@db.example/shop?sslmode=require'

    Raises:
        BadUrl: it is another database's, or names no database.
    """
    scheme, separator, rest = url.strip().partition("://")
    form = "write postgresql://host/database, with user:password@ before the host"
    if not separator:
        raise BadUrl(f"this is no URL; {form}")
    if scheme.lower() not in SCHEMES:
        raise BadUrl(f"{scheme}:// is no Postgres database of a supported driver; {form}")
    parts = REST.fullmatch(rest)
    if parts is None or not HOST.fullmatch(parts["hosts"]):
        raise BadUrl(
            f"the host and port cannot be read; {form}, with %40 for @ and %2F for / in a password, and "
            "several hosts as ?host=one:5432&host=two:5432"
        )
    if not parts["name"] and not re.search(r"[?&]dbname=[^&]", parts["query"] or ""):
        raise BadUrl(f"the URL names no database; {form}")
    return f"{PSYCOPG}://{rest}"
