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


class HostBusy(aiohttp.ClientResponseError):
    """Signal a host that names the time of a later try."""

    def __init__(self, request: Any, history: Any, status: int, reason: str | None, after_s: float) -> None:
        super().__init__(request, history, status=status, message=f"{reason}, later in {after_s:g} s")
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
        hosts: headers, rate and waits; a host that names a time is asked again then.

    Raises:
        FileNotFoundError: HTTP 404 or 410.
        PrivateAddress, TooManyRedirects: where it leads.
        aiohttp.ClientError, OSError, ValueError: all else that goes wrong.
    """
    known = filesystem("http", get_client=_client_of_known_hosts)
    public = filesystem("http", get_client=_client_of_public_hosts)
    trusts = (not from_strangers, private_redirects and not from_strangers)
    host, waits_until = URL(url).host or "", monotonic() + hosts.wait_s
    while True:
        PACE.wait(host, hosts.rate)
        try:
            work = _follow(known, public, url, limit, trusts, hosts)
            content: bytes = sync(known.loop, _within, timeout_s, work)
        except HostBusy as busy:
            if monotonic() + busy.after_s > waits_until:
                raise
            PACE.pause(host, busy.after_s)
        else:
            return content


async def _within(timeout_s: float, work: Any) -> bytes:
    async with asyncio.timeout(timeout_s):
        content: bytes = await work
        return content


async def _follow(
    known: Any, public: Any, url: str, limit: int, trusts: tuple[bool, bool], hosts: HostRules
) -> bytes:
    """Read the response that `url` leads to.

    Args:
        trusts: whether the URL's own host may be a private one, and any other that it redirects to.
    """
    first = at = URL(url)
    for _ in range(MAX_REDIRECTS):
        trusted = trusts[(at.host, at.port) != (first.host, first.port)]
        _check_literal(at, require_no_metadata if trusted else require_public)
        session: aiohttp.ClientSession = await (known if trusted else public).set_session()
        # `identity`: a compressed answer could unfold to any size
        headers = hosts.headers_for(at.host or "") | {"Accept-Encoding": "identity"}
        async with session.get(at, headers=headers, allow_redirects=False) as answer:
            if answer.status in REDIRECTS and "Location" in answer.headers:
                at = at.join(URL(answer.headers["Location"]))
                if at.scheme not in ("http", "https"):
                    raise PrivateAddress(f"leads to {at.scheme}:, which is not followed")
                continue
            if answer.status in GONE:
                raise FileNotFoundError(f"HTTP {answer.status} {answer.reason}")
            if (after_s := retry_after_s(answer.status, answer.headers.get("Retry-After"))) is not None:
                raise HostBusy(answer.request_info, answer.history, answer.status, answer.reason, after_s)
            answer.raise_for_status()
            content = bytearray()
            async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
                content += chunk
                if len(content) >= limit:
                    break
            return bytes(content[:limit])
    raise TooManyRedirects(f"redirected more than {MAX_REDIRECTS} times")


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
