"""The bytes of a picture behind an http URL; what strangers send does not lead into private networks."""

import asyncio
import socket
from ipaddress import IPv6Address, ip_address
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from fsspec import filesystem
from fsspec.asyn import sync
from yarl import URL

CHUNK_BYTES = 1 << 16
MAX_REDIRECTS = 10
GONE = (404, 410)
REDIRECTS = (301, 302, 303, 307, 308)


class PrivateAddress(OSError):
    """It leads to this machine or into a private network, where whoever sent it has no business."""


class TooManyRedirects(OSError):
    """A redirect leads to a redirect, and so on."""


def read_url(
    url: str, *, limit: int, timeout_s: float, private_redirects: bool, from_strangers: bool = False
) -> bytes:
    """Return at most `limit` bytes of the answer to `url`.

    Args:
        timeout_s: for all of it, redirects included.
        private_redirects: whether a redirect to another host may lead to a loopback or private address. The
            URL itself may: whoever wrote it knows that host; whoever sends a redirect is a stranger.
        from_strangers: the URL itself may not either.

    Raises:
        FileNotFoundError: HTTP 404 or 410.
        PrivateAddress, TooManyRedirects: where it leads.
        aiohttp.ClientError, OSError, ValueError: all else that goes wrong.
    """
    plain, guarded = filesystem("http"), filesystem("http", get_client=_guarded_client)
    trusts = (not from_strangers, private_redirects and not from_strangers)
    content: bytes = sync(plain.loop, _within, timeout_s, _follow(plain, guarded, url, limit, trusts))
    return content


async def _within(timeout_s: float, work: Any) -> bytes:
    async with asyncio.timeout(timeout_s):
        content: bytes = await work
        return content


async def _follow(plain: Any, guarded: Any, url: str, limit: int, trusts: tuple[bool, bool]) -> bytes:
    """Return what `url` leads to.

    Args:
        trusts: whether the URL's own host may be a private one, and any other that it redirects to.
    """
    first = at = URL(url)
    for _ in range(MAX_REDIRECTS):
        trusted = trusts[(at.host, at.port) != (first.host, first.port)]
        if not trusted:
            _require_public(at)
        session: aiohttp.ClientSession = await (plain if trusted else guarded).set_session()
        # `identity`: a compressed answer could unfold to any size
        headers = {"Accept-Encoding": "identity"}
        async with session.get(at, headers=headers, allow_redirects=False) as answer:
            if answer.status in REDIRECTS and "Location" in answer.headers:
                at = at.join(URL(answer.headers["Location"]))
                if at.scheme not in ("http", "https"):
                    raise PrivateAddress(f"leads to {at.scheme}:, which is not followed")
                continue
            if answer.status in GONE:
                raise FileNotFoundError(f"HTTP {answer.status} {answer.reason}")
            answer.raise_for_status()
            content = bytearray()
            async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
                content += chunk
                if len(content) >= limit:
                    break
            return bytes(content[:limit])
    raise TooManyRedirects(f"redirected more than {MAX_REDIRECTS} times")


class _PublicOnly(AbstractResolver):
    """Gives no address but public ones: a name is looked up here, so that it can't lead elsewhere later."""

    def __init__(self) -> None:
        self._names = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._names.resolve(host, port, family)
        for one in found:
            _require_global(one["host"], host)
        return found

    async def close(self) -> None:
        await self._names.close()


async def _guarded_client(**options: Any) -> aiohttp.ClientSession:
    options.pop("loop", None)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=_PublicOnly()), **options)


def _require_public(url: URL) -> None:
    """Refuse an address that is written out: no resolver is asked about those."""
    try:
        _require_global(url.host or "", url.host or "")
    except ValueError:
        return  # a name


def _require_global(address: str, host: str) -> None:
    ip = ip_address(address)
    inner = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    if not (inner or ip).is_global:
        raise PrivateAddress(f"leads to {host}, a private address")
