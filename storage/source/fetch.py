"""The bytes of one picture, from this machine or from a URL."""

import errno
import os
import stat

import aiohttp
from fsspec.core import url_to_fs

from storage.source.validate import printable
from storage.source.web import PrivateAddress, read_url


class FetchError(ValueError):
    """The bytes of this picture cannot be had; the next one may be fine.

    Attributes:
        reason: `missing_file`, `too_large`, `private_address` or `unreachable`.
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
) -> bytes:
    """Return the bytes at `uri`; none is a fine answer here, an empty file is refused when it is decoded.

    Args:
        uri: an absolute path, or a URL that fsspec knows, as in `Record.image`.
        max_bytes: no more than one byte beyond this is read.
        timeout_s: for the whole of an HTTP answer; other protocols have limits of their own.
        private_redirects: whether an http redirect to another host may lead into a private network.
        from_strangers: whether the URL itself comes from somebody who has no business there either.

    Raises:
        FetchError: whatever it is that keeps the bytes from being read.
    """
    if uri.lower().startswith(("http://", "https://")):
        content = _from_web(uri, max_bytes + 1, timeout_s, private_redirects, from_strangers)
    elif "://" in uri and not uri.startswith("/"):
        content = _from_store(uri, max_bytes + 1)
    else:
        content = _from_disk(uri, max_bytes + 1)
    if len(content) > max_bytes:
        raise FetchError("too_large", f"{uri}: over {max_bytes:,} bytes; make it smaller or raise the limit")
    return content


def _from_disk(path: str, limit: int) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would block
            raise FileNotFoundError(errno.ENOENT, "Is a folder or a device")
        with open(path, "rb") as file:
            return file.read(limit)
    except (FileNotFoundError, NotADirectoryError) as error:
        why = f"{path}: no such file ({error.strerror}); put it there or correct the path"
        raise FetchError("missing_file", why) from error
    except ValueError as error:  # NUL in it
        raise FetchError("missing_file", f"{path}: no path ({error}); correct it") from error
    except OSError as error:
        why = f"{path}: cannot be read ({error.strerror}); check its permissions and the disk"
        raise FetchError("unreachable", why) from error


def _from_web(url: str, limit: int, timeout_s: float, private_redirects: bool, from_strangers: bool) -> bytes:
    try:
        return read_url(
            url,
            limit=limit,
            timeout_s=timeout_s,
            private_redirects=private_redirects,
            from_strangers=from_strangers,
        )
    except FileNotFoundError as error:
        raise FetchError("missing_file", f"{url}: {error}; correct the URL or remove the row") from error
    except TimeoutError as error:
        why = f"{url}: no full answer within {timeout_s:g} s; try again, or raise the time limit"
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
    """Return the refusal behind `error`: what a resolver raises comes wrapped."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, PrivateAddress):
        cause = cause.__cause__
    return cause


def _from_store(url: str, limit: int) -> bytes:
    try:
        files, path = url_to_fs(url)
        with files.open(path, "rb") as file:
            content: bytes = file.read(limit)
    except FileNotFoundError as error:
        missing = f"{url}: there is no such file; put it there or correct the URL"
        raise FetchError("missing_file", missing) from error
    except Exception as error:  # each driver has exceptions of its own
        why = f"{url}: {type(error).__name__} ({error}); check the URL, its driver and your login"
        raise FetchError("unreachable", why) from error
    return content
