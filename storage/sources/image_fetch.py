"""Read the bytes of one image, from disk or a URL."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import BoundedSemaphore, Thread

import aiohttp
from fsspec.core import url_to_fs

from storage.errors import InvalidInput
from storage.sources.addresses import PrivateAddress
from storage.sources.host_rules import NO_RULES, HostRules
from storage.sources.http_fetch import HostBusy, read_url
from storage.sources.open_files import OutsideFolder, open_file
from storage.sources.validation import printable

MOST_STORE_READS = 16
"""Limit of concurrent reads, abandoned ones included: a driver cannot be interrupted."""

WEB = ("http://", "https://")
_store_reads = BoundedSemaphore(MOST_STORE_READS)


class FetchError(InvalidInput):
    """Signal an image that cannot be read; the next may be fine.

    Attributes:
        reason: `missing_file`, `outside_source`, `too_large`, `private_address` or `unreachable`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(printable(message))
        self.reason = reason


def fetch(
    uri: str,
    *,
    max_bytes: int,
    timeout_s: float,
    private_redirects: bool = False,
    from_strangers: bool = False,
    folder: Path | None = None,
    hosts: HostRules = NO_RULES,
) -> bytes:
    """Return the bytes at `uri`.

    No bytes are a valid result here; an empty file is rejected when it is decoded.

    Args:
        uri: an absolute path, or a URL that fsspec knows, as in `Record.image`.
        max_bytes: no more than one byte beyond this is read.
        timeout_s: for the whole of an answer.
        private_redirects: whether an http redirect to another host may lead into a private network.
        from_strangers: whether the URL comes from an untrusted client: it must then be an http URL of a
            public host.
        folder: the resolved folder that must contain a path; None to allow any file.
        hosts: headers, rate and waits of http requests; the waits are not counted in `timeout_s`.

    Raises:
        FetchError: the bytes cannot be read.
    """
    if uri.lower().startswith(WEB):
        content = _from_web(uri, max_bytes + 1, timeout_s, private_redirects, from_strangers, hosts)
    elif from_strangers:
        raise FetchError("missing_file", f"{uri}: no http URL, and its bytes are not kept; send it again")
    elif "://" in uri and not uri.startswith("/"):
        content = _from_store(uri, max_bytes + 1, timeout_s)
    else:
        content = _from_disk(uri, max_bytes + 1, folder)
    if len(content) > max_bytes:
        raise FetchError("too_large", f"{uri}: over {max_bytes:,} bytes; make it smaller or raise the limit")
    return content


def _from_disk(path: str, limit: int, folder: Path | None) -> bytes:
    try:
        with open_file(path, folder) as file:
            return file.read(limit)
    except OutsideFolder as error:
        why = f"{path}: {error.strerror}; copy the file into that folder"
        raise FetchError("outside_source", why) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        why = f"{path}: no such file ({error.strerror}); put it there or correct the path"
        raise FetchError("missing_file", why) from error
    except ValueError as error:  # NUL in it
        raise FetchError("missing_file", f"{path}: no path ({error}); correct it") from error
    except OSError as error:
        why = f"{path}: cannot be read ({error.strerror}); check its permissions and the disk"
        raise FetchError("unreachable", why) from error


def _from_web(
    url: str, limit: int, timeout_s: float, private_redirects: bool, from_strangers: bool, hosts: HostRules
) -> bytes:
    try:
        return read_url(
            url,
            limit=limit,
            timeout_s=timeout_s,
            private_redirects=private_redirects,
            from_strangers=from_strangers,
            hosts=NO_RULES if from_strangers else hosts,
        )
    except FileNotFoundError as error:
        raise FetchError("missing_file", f"{url}: {error}; correct the URL or remove the row") from error
    except TimeoutError as error:
        why = f"{url}: no full answer within {timeout_s:g} s; try again, or raise the time limit"
        raise FetchError("unreachable", why) from error
    except HostBusy as error:
        why = f"{url}: {error}; ingest it again later, or raise SIGHTLINE_FETCH_WAIT_S"
        raise FetchError("unreachable", why) from error
    except aiohttp.ClientResponseError as error:
        why = f"{url}: HTTP {error.status} {error.message}; does it need a login, or a later try?"
        raise FetchError("unreachable", why) from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        if (private := _private(error)) is not None:
            setting = "SIGHTLINE_API__PRIVATE_IMAGES" if from_strangers else "SIGHTLINE_PRIVATE_REDIRECTS"
            why = f"{url}: {private}; correct the URL, or set {setting}=true"
            raise FetchError("private_address", why) from error
        why = f"{url}: {type(error).__name__} ({error}); check the URL and the network"
        raise FetchError("unreachable", why) from error


def _private(error: BaseException) -> PrivateAddress | None:
    """Return the `PrivateAddress` behind an error, or None.

    Errors of a resolver come wrapped.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, PrivateAddress):
        cause = cause.__cause__
    return cause


def _from_store(url: str, limit: int, timeout_s: float) -> bytes:
    def read() -> bytes:
        files, path = url_to_fs(url)
        with files.open(path, "rb") as file:
            content: bytes = file.read(limit)
        return content

    try:
        return _in_time(read, timeout_s)
    except FileNotFoundError as error:
        missing = f"{url}: there is no such file; put it there or correct the URL"
        raise FetchError("missing_file", missing) from error
    except Exception as error:  # each driver has exceptions of its own
        why = f"{url}: {type(error).__name__} ({error}); check the URL, its driver and your login"
        raise FetchError("unreachable", why) from error


def _in_time(read: Callable[[], bytes], timeout_s: float) -> bytes:
    """Run `read` in a thread, and abandon it after `timeout_s`.

    The number of abandoned threads is limited.

    Raises:
        TimeoutError: it took too long, or too many others still take.
    """
    reads = _store_reads
    if not reads.acquire(timeout=timeout_s):
        raise TimeoutError(f"{MOST_STORE_READS} earlier reads still wait for their stores")
    found: Future[bytes] = Future()

    def work() -> None:
        try:
            found.set_result(read())
        except BaseException as error:  # noqa: BLE001 (its reader gets it)
            found.set_exception(error)
        finally:
            reads.release()

    Thread(target=work, name="store read", daemon=True).start()
    try:
        return found.result(timeout_s)
    except TimeoutError as error:
        raise TimeoutError(f"no full answer within {timeout_s:g} s") from error
