"""Another user of this machine, and folders open to that user."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

STRANGER = 54321
"""A user without a name, who runs nothing else here: `nobody` may be who runs Postgres for root."""

has_another_user = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="only root, with setpriv (util-linux), can act as another user",
)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder below /tmp that others may enter; removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="sightline-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def as_another_user(*command: object) -> "subprocess.CompletedProcess[str]":
    """Run a command as a user, without any capability."""
    user = ["--reuid", str(STRANGER), "--regid", str(STRANGER), "--clear-groups", "--inh-caps", "-all"]
    return subprocess.run(
        ["setpriv", *user, *map(str, command)], cwd="/", capture_output=True, text=True, check=False
    )


def readable_by_another_user(folder: Path) -> list[str]:
    """The paths of `folder` that another user can read or write."""
    paths = [folder, *sorted(folder.rglob("*"))]
    script = 'for path in "$@"; do if [ -r "$path" ] || [ -w "$path" ]; then echo "$path"; fi; done'
    return as_another_user("/bin/sh", "-c", script, "sh", *paths).stdout.splitlines()
