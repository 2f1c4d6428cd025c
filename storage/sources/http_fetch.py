"""Fetch images over HTTP, and check the address of every connection."""

import asyncio
import socket
from collections.abc import Callable
from time import monotonic
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from fsspec import filesystem
from fsspec.asyn import sync
from yarl import URL

from storage.errors import SightlineError
from storage.sources.addresses import PrivateAddress, parse_address, require_no_metadata, require_public
from storage.sources.host_rules import NO_RULES, PACE, HostRules, retry_after_s

CHUNK_BYTES = 1 << 16
MAX_REDIRECTS = 10
GONE = (404, 410)
REDIRECTS = (301, 302, 303, 307, 308)

Judge = Callable[[str, str], None]
"""Raises `PrivateAddress` for a forbidden address of a host."""


class HostBusy(SightlineError, OSError):
    """Signal a host that names the time of a later try.

    Attributes:
        after_s: until that time.
    """

    def __init__(self, after_s: float, status: int | None = None) -> None:
        answer = "this host is busy" if status is None else f"HTTP {status}: this host is busy"
        super().__init__(f"{answer}, and asks for the next request in {after_s:,.0f} s")
        self.after_s = after_s


class TooManyRedirects(SightlineError, OSError):
    """Signal a chain of redirects that is too long."""


def read_url(
    url: str,
    *,
    limit: int,
    timeout_s: float,
    private_redirects: bool,
    from_strangers: bool = False,
    hosts: HostRules = NO_RULES,
) -> bytes:
    """Read at most `limit` bytes of the response to `url`.

    Args:
        timeout_s: for all of it, redirects included.
        private_redirects: whether a redirect to another host may lead to a loopback or private address. The
            URL itself may: its author knows that host; a redirect is not trusted.
        from_strangers: treat the URL itself like a redirect.
        hosts: headers, rate and waits, which are not counted in `timeout_s`.

    Raises:
        FileNotFoundError: HTTP 404 or 410.
        PrivateAddress, TooManyRedirects: where it leads.
        HostBusy: it names a time that is too late to wait for.
        aiohttp.ClientError, OSError, ValueError: all else that goes wrong.
    """
    fetch = _Fetch(URL(url), limit, private_redirects, from_strangers, hosts)
    at, left_s, waits_until = URL(url), timeout_s, monotonic() + hosts.wait_s
    redirects = 0
    while redirects < MAX_REDIRECTS:
        host = at.host or ""
        if (pause_s := PACE.left_alone_s(host, hosts.wait_s)) is not None:
            raise HostBusy(pause_s)
        PACE.wait(host, hosts.rate)
        began = monotonic()
        try:
            found = fetch.read(at, left_s)
        except HostBusy as busy:
            if not from_strangers:  # they may not stop the ingests from a host
                PACE.pause(host, busy.after_s)
            if monotonic() + busy.after_s > waits_until:
                raise
            continue
        except FileNotFoundError:
            PACE.resume(host)
            raise
        finally:
            left_s -= monotonic() - began
        PACE.resume(host)
        if isinstance(found, bytes):
            return found
        at, redirects = found, redirects + 1
    raise TooManyRedirects(f"redirected more than {MAX_REDIRECTS} times")


class _Fetch:
    """Send the requests that lead to one image."""

    def __init__(
        self, first: URL, limit: int, private_redirects: bool, from_strangers: bool, hosts: HostRules
    ) -> None:
        self._first, self._limit, self._hosts = first, limit, hosts
        self._trusts = (not from_strangers, private_redirects and not from_strangers)
        """Whether the URL's own host may be a private one, and any other that it redirects to."""

        self._known = filesystem("http", get_client=_client_of_known_hosts)
        self._public = filesystem("http", get_client=_client_of_public_hosts)

    def read(self, at: URL, timeout_s: float) -> bytes | URL:
        """Return the content at a URL, or the target of its redirect."""
        found: bytes | URL = sync(self._known.loop, self._within, at, timeout_s)
        return found

    async def _within(self, at: URL, timeout_s: float) -> bytes | URL:
        async with asyncio.timeout(max(0.0, timeout_s)):
            return await self._answer(at)

    async def _answer(self, at: URL) -> bytes | URL:
        trusted = self._trusts[(at.host, at.port) != (self._first.host, self._first.port)]
        _check_literal(at, require_no_metadata if trusted else require_public)
        session: aiohttp.ClientSession = await (self._known if trusted else self._public).set_session()
        is_downgraded = self._first.scheme == "https" != at.scheme
        headers = self._hosts.headers_for(at.host or "", is_downgraded=is_downgraded)
        # `identity`: a compressed answer could unfold to any size
        headers |= {"Accept-Encoding": "identity"}
        async with session.get(at, headers=headers, allow_redirects=False) as answer:
            if answer.status in REDIRECTS and "Location" in answer.headers:
                return _redirected(at, answer.headers["Location"])
            if answer.status in GONE:
                raise FileNotFoundError(f"HTTP {answer.status} {answer.reason}")
            if (after_s := retry_after_s(answer.status, answer.headers.get("Retry-After"))) is not None:
                raise HostBusy(after_s, answer.status)
            answer.raise_for_status()
            content = bytearray()
            async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
                content += chunk
                if len(content) >= self._limit:
                    break
            return bytes(content[: self._limit])


def _redirected(at: URL, location: str) -> URL:
    found = at.join(URL(location))
    if found.scheme not in ("http", "https"):
        raise PrivateAddress(f"leads to {found.scheme}:, which is not followed")
    return found


def _check_literal(url: URL, judge: Judge) -> None:
    """Check a host that is an address in any spelling.

    A name is checked once it is resolved.
    """
    host = url.raw_host or ""
    if (address := parse_address(host)) is not None:
        judge(str(address), host)


class _CheckedResolver(AbstractResolver):
    """Resolve names, and reject addresses that must not be used."""

    def __init__(self, judge: Judge) -> None:
        self._names, self._judge = aiohttp.ThreadedResolver(), judge

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._names.resolve(host, port, family)
        for one in found:
            self._judge(one["host"], host)
        return found

    async def close(self) -> None:
        await self._names.close()


async def _client_of_public_hosts(**options: Any) -> aiohttp.ClientSession:
    return _client(require_public, options)


async def _client_of_known_hosts(**options: Any) -> aiohttp.ClientSession:
    return _client(require_no_metadata, options)


def _client(judge: Judge, options: dict[str, Any]) -> aiohttp.ClientSession:
    """Open a client that checks the address of every connection."""

    def checked_socket(info: tuple[Any, Any, int, str, tuple[Any, ...]]) -> socket.socket:
        family, kind, protocol, _, address = info
        judge(address[0], address[0])
        return socket.socket(family, kind, protocol)

    options.pop("loop", None)
    connector = aiohttp.TCPConnector(
        resolver=_CheckedResolver(judge), use_dns_cache=False, socket_factory=checked_socket
    )
    return aiohttp.ClientSession(connector=connector, **options)
