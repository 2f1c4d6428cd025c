"""Find the Prefect server of a data directory.

The address is trusted only while the server holds the lock. So the password is not sent to a program of
another user that was given the port since.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from flows.config.prefect_env import has_prefect_settings, use_prefect_password, use_prefect_server
from storage.data_directory import (
    SecretUnusable,
    load_or_create_secret,
    make_private_folder,
    require_trusted,
)
from storage.errors import Conflict
from storage.files import atomic_write, is_locked, take_lock

USER = "sightline"
PASSWORD_BYTES = 24


class AlreadyServed(Conflict):
    """Report that a Prefect server of the data directory runs already."""


@dataclass(frozen=True, slots=True)
class PrefectAccess:
    """Represent the address and the password of a Prefect server."""

    url: str
    """Address of its API."""

    password: str | None
    """User name and password, separated by a colon."""


def folder_of(home: Path) -> Path:
    """Return the folder of the Prefect server of a data directory."""
    return home / "prefect"


def password_file(home: Path) -> Path:
    """Return the path of the Prefect server's password."""
    return folder_of(home) / "auth"


def address_file(home: Path) -> Path:
    """Return the path of the running Prefect server's address."""
    return folder_of(home) / "address"


def password_of(home: Path) -> str:
    """Return the password of the Prefect servers, generated at the first call.

    Raises:
        SecretUnusable: the file holds none, or others may read it.
    """
    path = password_file(home)
    if not path.exists():
        make_private_folder(path.parent)
    password = load_or_create_secret(path, lambda: f"{USER}:{secrets.token_urlsafe(PASSWORD_BYTES)}")
    if ":" not in password:
        raise SecretUnusable(
            f"{path} must hold USER:PASSWORD; remove it, and another is made at the next start"
        )
    return password


def keep_password(home: Path, password: str) -> None:
    """Store the password of the server that starts now."""
    if password != password_of(home):
        atomic_write(password_file(home), f"{password}\n".encode())


def join_server(home: Path) -> bool:
    """Use the configured or the embedded server for flow runs.

    Returns:
        Whether there is one; Prefect is imported only then.
    """
    if _configured() is not None:
        return True
    found = _embedded_server(home)
    if found is None:
        return False
    from prefect.context import refresh_global_settings_context

    use_prefect_server(found.url)
    use_prefect_password(password_of(home))
    refresh_global_settings_context()
    return True


def find_server(home: Path) -> PrefectAccess | None:
    """Return the access to the Prefect server, or None if none answers."""
    configured = _configured()
    if configured is None:
        return _embedded_server(home)
    return configured if _answers(configured.url, trust_env=True) else None


def _configured() -> PrefectAccess | None:
    """Return the server of Prefect's own settings."""
    if not has_prefect_settings():
        return None
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL  # which takes two seconds

    url = PREFECT_API_URL.value()
    return None if url is None else PrefectAccess(url, PREFECT_API_AUTH_STRING.value())


def _embedded_server(home: Path) -> PrefectAccess | None:
    """Return the server that `up` or `serve` started, if it answers."""
    require_trusted(home)
    if not address_file(home).exists() or not _is_locked(_lock_file(home)):
        return None
    url = address_file(home).read_text().strip()
    return PrefectAccess(url, password_of(home)) if _answers(url, trust_env=False) else None


@contextmanager
def lock_for_server(home: Path) -> Iterator[int]:
    """Take the lock of the Prefect server, and yield its descriptor.

    Raises:
        AlreadyServed: a server has it.
    """
    make_private_folder(folder_of(home))
    with _lock_file(home).open("ab") as file:
        if not take_lock(file.fileno()):
            raise AlreadyServed(
                f"a Prefect server of {home} runs already; end the `sightline up` or `sightline serve` "
                "that started it, or its leftover process flows.orchestration.server_process"
            )
        yield file.fileno()


def _lock_file(home: Path) -> Path:
    return folder_of(home) / "server.lock"


def _is_locked(path: Path) -> bool:
    with suppress(FileNotFoundError), path.open("rb") as file:
        return is_locked(file.fileno())
    return False


def _answers(url: str, *, trust_env: bool) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/health", trust_env=trust_env).is_success
    return False
