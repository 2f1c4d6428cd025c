"""Processes that need not import anything, because each is forked from one that has imported everything.

A Python of its own spends up to ten seconds of a core on importing the model's libraries and Prefect. What is
forked is a process of its own as well: with its environment, folder, output and end.
"""

import atexit
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

FORKS = multiprocessing.get_context("forkserver")
WARM = "tests.support.warm"
FORKS.set_forkserver_preload([WARM])
ROOT = Path(__file__).parents[2]


def run(
    work: Callable[..., object],
    *arguments: object,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `work` in a process of its own, and return how that ended and what it printed.

    Args:
        work: a function of a module, for it is pickled; SystemExit gives the exit code.
        environment: all of it; else that of this process.
    """
    where, variables = folder or Path.cwd(), dict(os.environ if environment is None else environment)
    _start_server()
    with TemporaryDirectory() as said:
        process = FORKS.Process(target=_carry_out, args=(work, arguments, where, variables, Path(said)))
        process.start()
        process.join()
        printed, complained = (Path(said, name).read_text() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(arguments, process.exitcode, printed, complained)


def sightline(*arguments: object, **where: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own; `where` are a folder and an environment, as of `run`."""
    return run(command_line, *map(str, arguments), **where)


def script(code: str, **where: Any) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, as `python -c` does."""
    return run(exec, code, {"__name__": "__main__"}, **where)


@cache
def _start_server() -> None:
    """Start the process that is forked where it finds the tests, whatever a test has set by now.

    What it cannot import beforehand it passes over without a word.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        forkserver.ensure_running()


def _carry_out(
    work: Callable[..., object],
    arguments: tuple[object, ...],
    folder: Path,
    environment: dict[str, str],
    said: Path,
) -> None:
    if WARM not in sys.modules:
        raise ImportError(f"the process that is forked did not import {WARM}")
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        with (said / name).open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    _have_prefect_look_again()
    try:
        work(*arguments)
    finally:  # a fork leaves the second one out; with them Prefect says its last words, then ends its server
        threading._shutdown()
        atexit._run_exitfuncs()


def _have_prefect_look_again() -> None:
    """Have Prefect read the environment, as it did when it was imported."""
    from prefect.context import refresh_global_settings_context
    from prefect.logging.configuration import setup_logging

    refresh_global_settings_context()
    setup_logging()


def command_line(*arguments: str) -> None:
    """Be `sightline`, in a process that was forked."""
    from flows.cli import main, options

    prepare = options.prepare_prefect

    def prepare_again(*args: Any, **named: Any) -> None:
        prepare(*args, **named)
        _have_prefect_look_again()

    options.prepare_prefect = prepare_again
    main.main(arguments, prog_name="sightline")
