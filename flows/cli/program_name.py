"""Write commands as the user can type them again."""

import shlex
import shutil
import sys
from pathlib import Path

from flows.config.settings import Settings

PROGRAM = "sightline"


def program(settings: Settings, started: str | None = None) -> str:
    """Return the program as the user started it, for a command line.

    Args:
        settings: where they set a data directory, the command line sets it too.
        started: path of the started script; by default of this process.
    """
    home = f"SIGHTLINE_HOME={shlex.quote(str(settings.home))} " if "home" in settings.model_fields_set else ""
    return home + _script(Path(sys.argv[0] if started is None else started))


def _script(started: Path) -> str:
    found = shutil.which(PROGRAM)
    if started.name != PROGRAM or not started.exists():
        return f"{shlex.quote(sys.executable)} -m flows.cli"
    if found is not None and started.samefile(found):
        return PROGRAM
    return shlex.quote(str(started))
