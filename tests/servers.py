"""Servers that the project does not start itself, as Debian packages them."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, make_url

from storage.embedded.account import choose_account
from storage.embedded.data_folder import create
from storage.embedded.place import PORT, Place, make_private
from tests.tools import tool

POSTGRES_15 = "/usr/lib/postgresql/15/bin/postgres"
START_TIMEOUT_S = 30


@contextmanager
def a_postgres_15(folder: Path) -> Iterator[URL]:
    """Run a Postgres 15 in an empty folder; yield the URL of its first database.

    Args:
        folder: an absolute path.
    """
    binaries = Path(tool(POSTGRES_15)).parent
    place = Place(folder)
    account = choose_account(place.home, place.data, binaries)
    for private in {place.folder, place.sockets}:
        make_private(private, account)
    with (folder / "lock").open("w") as lock:
        create(place, account, binaries, lock.fileno())

    def pg_ctl(*arguments: str) -> None:
        argv = [str(binaries / "pg_ctl"), "-D", place.data.name, "-w", "-t", str(START_TIMEOUT_S), *arguments]
        status, output = account.run(argv, cwd=place.folder, timeout_s=2 * START_TIMEOUT_S)
        assert status == 0, f"{output}\n{place.last_words}"

    options = shlex.join(["-p", str(PORT), "-k", str(place.sockets), "-c", "listen_addresses="])
    pg_ctl("-l", place.log.name, "-o", options, "start")
    try:
        yield make_url(place.url)
    finally:
        pg_ctl("-m", "immediate", "stop")
        if place.sockets != place.folder:
            place.sockets.rmdir()
