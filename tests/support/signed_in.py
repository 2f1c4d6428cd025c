"""Sessions at a console that runs, signed in by the link that its user has."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from flows.console.auth import generated_password


def link_to(url: str, home: Path) -> str:
    """The link of the console of `home` at `url`."""
    return f"{url}/login?token={generated_password(home)}"


@contextmanager
def signed_in(url: str, home: Path) -> Iterator[httpx.Client]:
    """A client with a session, whose paths are those of the console."""
    with httpx.Client(base_url=url) as client:
        client.get(link_to(url, home))
        yield client
