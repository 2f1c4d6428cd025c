"""Run the embedded stores, the schedules and the console until a signal.

Each part is a process; its output goes to one log. When one ends by itself, all end.
"""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from queue import Empty, SimpleQueue

from flows.cli.up_lock import lock_for_up
from flows.config.settings import Settings
from flows.console.auth import require_protection
from flows.orchestration.schedule import ServedFlows
from flows.tracking.signals import end_process, until_stopped
from storage.embedded.postgres.server import postgres_url, stop_postgres
from storage.embedded.qdrant.process.client import start as start_index
from storage.embedded.qdrant.process.client import stop as stop_index
from storage.errors import SightlineError

START_S = 180
"""A new Prefect server migrates its database first, on a busy machine for minutes."""

STOP_S = 60
PAUSE_S = 0.2
LEVEL = re.compile(r"\b(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")

ANSWER = '{"ui": '
"""Start of the line that `sightline serve --json` prints once it runs."""

LISTENS = "The console is at "
"""Start of that of `sightline console`; its address proves nothing, as another user may listen there."""


class PartEnded(SightlineError):
    """Report a part that ended unexpectedly."""


@dataclass(frozen=True, slots=True)
class Line:
    """Represent one line of a part's output."""

    at: datetime
    part: str
    message: str

    @property
    def level(self) -> str:
        """Return the level named in its first words; else INFO."""
        found = LEVEL.search(self.message[:80])
        return found[1] if found else "INFO"

    def as_text(self) -> str:
        return f"{self.at:%H:%M:%S} {self.part:9} | {self.message}"

    def as_json(self) -> str:
        document = {
            "time": self.at.isoformat(),
            "level": self.level,
            "part": self.part,
            "message": self.message,
        }
        return json.dumps(document, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Running:
    """Represent the addresses of the running parts."""

    console: str
    served: ServedFlows
    home: str

    def addresses(self) -> dict[str, str]:
        """Return the addresses by name."""
        return {
            "console": self.console,
            "API": f"{self.console}/api/v1/docs",
            "metrics": f"{self.console}/metrics",
            "home": self.home,
        }


LogLine = Callable[[Line], None]


def up(settings: Settings, prefect_port: int, log: LogLine, report: Callable[[Running], None]) -> None:
    """Run everything until SIGTERM or SIGINT; end active flows first.

    Args:
        log: receives each line of output, from one thread at a time.
        report: called once everything runs.

    Raises:
        NotProtected: the console would be open to anyone.
        UpRuns: another `up` runs on the data directory.
        PartEnded: one of the parts did not start, or has ended.
    """
    require_protection(settings.console)
    turn = threading.Lock()

    def log_in_turn(line: Line) -> None:
        with turn:
            log(line)

    with until_stopped(), lock_for_up(settings.home), ExitStack() as parts:
        parts.enter_context(stores(settings, log_in_turn))
        run = partial(part, log=log_in_turn)
        schedules = parts.enter_context(run("schedules", "serve", "--json", "--port", str(prefect_port)))
        console = parts.enter_context(run("console", "console", *_where(settings)))
        served = ServedFlows.of_json(json.loads(_answer(schedules, console)))
        _answer(console, schedules)
        report(Running(settings.console.url, served, str(settings.home.absolute())))
        while True:
            _require_running(schedules, console)
            time.sleep(PAUSE_S)


def _where(settings: Settings) -> tuple[str, ...]:
    return "--host", settings.console.host, "--port", str(settings.console.port)


@contextmanager
def stores(settings: Settings, log: LogLine) -> Iterator[None]:
    """Run the embedded stores, and stop them in the end."""
    try:
        if settings.database_url is None:
            postgres_url(settings.home)
            log(Line(datetime.now(UTC), "postgres", "runs"))
        if settings.qdrant.url is None:
            log(Line(datetime.now(UTC), "qdrant", f"listens at {start_index(settings.home).url}"))
        yield
    finally:
        if settings.qdrant.url is None and stop_index(settings.home):
            log(Line(datetime.now(UTC), "qdrant", "has stopped"))
        if settings.database_url is None and stop_postgres(settings.home):
            log(Line(datetime.now(UTC), "postgres", "has stopped"))


@dataclass(frozen=True, slots=True)
class Part:
    """Represent a command that runs as a process."""

    name: str
    process: "subprocess.Popen[str]"
    answers: "SimpleQueue[str]"
    """The lines that report that it runs."""


@contextmanager
def part(name: str, *command: str, log: LogLine) -> Iterator[Part]:
    """Run a command as a process, and terminate it in the end."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "flows.cli", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a Ctrl-C is for us: we end the parts in order
    )
    answers: SimpleQueue[str] = SimpleQueue()
    reader = threading.Thread(target=_read, args=(name, process.stdout, answers, log), daemon=True)
    reader.start()
    try:
        yield Part(name, process, answers)
    finally:
        end_process(process, within_s=STOP_S)
        reader.join(STOP_S)
        if process.stdout is not None:
            process.stdout.close()
        log(Line(datetime.now(UTC), name, "has ended"))


def _read(name: str, lines: Iterable[str], answers: "SimpleQueue[str]", log: LogLine) -> None:
    for line in lines:
        if line.startswith((ANSWER, LISTENS)):
            answers.put(line)
        if line.strip() and not line.startswith(ANSWER):
            log(Line(datetime.now(UTC), name, line.rstrip()))


def _answer(part: Part, *others: Part) -> str:
    """Return the line that reports that a part runs."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with suppress(Empty):
            return part.answers.get(timeout=PAUSE_S)
        _require_running(part, *others)
    raise PartEnded(f"{part.name} did not start within {START_S} seconds; its output is above")


def _require_running(*parts: Part) -> None:
    for one in parts:
        code = one.process.poll()
        if code is not None:
            raise PartEnded(f"{one.name} has ended with code {code}; its output is above")
