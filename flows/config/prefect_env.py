"""Read and set the environment variables of Prefect, without importing it."""

import os
from pathlib import Path

from storage.data_directory import make_private_folder

LEASE_STORAGE = "prefect.server.concurrency.lease_storage.filesystem"
"""Where Prefect keeps its concurrency slots; its default, in memory, loses them when the server restarts."""

UI_API_URLS = ("PREFECT_SERVER_UI_API_URL", "PREFECT_UI_API_URL")
"""Both names of one setting: the address to which Prefect's pages send their requests."""

ORIGINS = "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"


def prepare_prefect(home: Path, *, log_level: str) -> None:
    """Keep Prefect quiet and inside the data directory.

    Call it before Prefect is imported.
    A configuration that the user made for Prefect (a server, a profile) stays as it is.
    """
    own = {"PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILE"} & os.environ.keys()
    if not own and not (Path.home() / ".prefect").exists():
        own_home = home.absolute() / "prefect"
        make_private_folder(own_home)
        os.environ["PREFECT_HOME"] = str(own_home)
    os.environ.setdefault("PYTHONSAFEPATH", "1")  # its processes import nothing from the current folder
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", log_level)
    os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", log_level)
    if log_level == "CRITICAL":
        os.environ.setdefault("PREFECT_INTERNAL_LOGGING_LEVEL", log_level)
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")


def wait_shortly_for_prefect() -> None:
    """Have Prefect repeat a request twice, within seconds.

    Its own default, five times, takes a minute for each of the last requests of a run whose server has ended.
    """
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "2")


def has_prefect_settings() -> bool:
    """Return whether Prefect's variables or files could name a server."""
    if {"PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"} & os.environ.keys():
        return True
    home = Path(os.environ.get("PREFECT_HOME", Path.home() / ".prefect"))
    if any(file.exists() for file in (home / "profiles.toml", Path("prefect.toml"), Path(".env"))):
        return True
    project = Path("pyproject.toml")
    return project.is_file() and b"[tool.prefect" in project.read_bytes()


def server_environment(home: Path, port: int, password: str) -> dict[str, str]:
    """Return the environment of an embedded Prefect server that requires a password.

    Only its own pages may use it, unless the user allows other origins. They use its own address, as that
    of a user's configuration is another server's.
    """
    origins = [f"http://{name}:{port}" for name in ("127.0.0.1", "localhost")]
    usual = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASE_STORAGE}
    needed = {
        "PREFECT_HOME": str(home.absolute() / "prefect"),
        "PREFECT_SERVER_API_AUTH_STRING": password,
        **dict.fromkeys(UI_API_URLS, f"{origins[0]}/api"),
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    if ORIGINS not in os.environ:
        needed[ORIGINS] = ",".join(origins)
    return usual | os.environ | needed


def use_prefect_server(url: str) -> None:
    """Set the addresses of Prefect for this process and its children."""
    os.environ["PREFECT_API_URL"] = url
    os.environ["PREFECT_UI_URL"] = ui_url(url)


def ui_url(url: str) -> str:
    """Return the address of the pages of an embedded server.

    >>> ui_url("http://127.0.0.1:4321/api")
    'http://127.0.0.1:4321'
    """
    return url.removesuffix("/api")


def use_prefect_password(password: str) -> None:
    """Set the password of Prefect's clients in this process and its children."""
    os.environ["PREFECT_API_AUTH_STRING"] = password
