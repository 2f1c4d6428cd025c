"""Everything at once: the embedded stores, Prefect with the schedules, and the console, until a signal.

Each part is a process of its own; what it says is a line of one log. When one ends by itself, all end.
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

from flows.config.settings import Settings
from flows.console.auth import require_protection
from flows.orchestration.schedule import Served
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
"""How the line begins that `sightline serve --json` prints once it runs."""

LISTENS = "The console is at "
"""And that `sightline console` prints; at its address another user's program may answer."""


class PartEnded(SightlineError):
    """One of the parts ended although nobody asked it to."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of what a part says."""

    at: datetime
    part: str
    message: str

    @property
    def level(self) -> str:
        """Its own, where it names one in its first words, as Python's and Prefect's logs do."""
        found = LEVEL.search(self.message[:80])
        return found[1] if found else "INFO"

    def as_text(self) -> str:
        return f"{self.at:%H:%M:%S} {self.part:9} | {self.message}"

    def as_json(self) -> str:
        told = {
            "time": self.at.isoformat(),
            "level": self.level,
            "part": self.part,
            "message": self.message,
        }
        return json.dumps(told, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Running:
    """Where everything is once it runs."""

    console: str
    served: Served
    home: str

    def addresses(self) -> dict[str, str]:
        """Return where a person or a program goes, by name."""
        return {
            "console": self.console,
            "API": f"{self.console}/api/v1/docs",
            "metrics": f"{self.console}/metrics",
            "home": self.home,
        }


Say = Callable[[Line], None]


def up(settings: Settings, prefect_port: int, say: Say, tell: Callable[[Running], None]) -> None:
    """Run everything until SIGTERM or SIGINT; then end it all, the flows that run first.

    Args:
        say: given each line that a part says, by one thread at a time.
        tell: called once everything answers.

    Raises:
        NotProtected: the console would be open to anyone.
        PartEnded: one of the parts did not start, or has ended.
    """
    require_protection(settings.console)
    turn = threading.Lock()

    def say_in_turn(line: Line) -> None:
        with turn:
            say(line)

    with until_stopped(), ExitStack() as parts:
        parts.enter_context(stores(settings, say_in_turn))
        run = partial(part, say=say_in_turn)
        schedules = parts.enter_context(run("schedules", "serve", "--json", "--port", str(prefect_port)))
        console = parts.enter_context(run("console", "console", *_where(settings)))
        served = Served.of_json(json.loads(_answer(schedules, console)))
        _answer(console, schedules)
        tell(Running(settings.console.url, served, str(settings.home.absolute())))
        while True:
            _refuse_ended(schedules, console)
            time.sleep(PAUSE_S)


def _where(settings: Settings) -> tuple[str, ...]:
    return "--host", settings.console.host, "--port", str(settings.console.port)


@contextmanager
def stores(settings: Settings, say: Say) -> Iterator[None]:
    """Run those stores that are in the home, whoever started them; they stop in the end."""
    try:
        if settings.database_url is None:
            postgres_url(settings.home)
            say(Line(datetime.now(UTC), "postgres", "runs"))
        if settings.qdrant.url is None:
            say(Line(datetime.now(UTC), "qdrant", f"listens at {start_index(settings.home).url}"))
        yield
    finally:
        if settings.qdrant.url is None and stop_index(settings.home):
            say(Line(datetime.now(UTC), "qdrant", "has stopped"))
        if settings.database_url is None and stop_postgres(settings.home):
            say(Line(datetime.now(UTC), "postgres", "has stopped"))


@dataclass(frozen=True, slots=True)
class Part:
    """A command of ours as a process of its own."""

    name: str
    process: "subprocess.Popen[str]"
    answers: "SimpleQueue[str]"
    """The lines by which it says that it runs."""


@contextmanager
def part(name: str, *command: str, say: Say) -> Iterator[Part]:
    """Run a command of ours; in the end it is asked to end, and waited for."""
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
    reader = threading.Thread(target=_read, args=(name, process.stdout, answers, say), daemon=True)
    reader.start()
    try:
        yield Part(name, process, answers)
    finally:
        end_process(process, within_s=STOP_S)
        reader.join(STOP_S)
        if process.stdout is not None:
            process.stdout.close()
        say(Line(datetime.now(UTC), name, "has ended"))


def _read(name: str, lines: Iterable[str], answers: "SimpleQueue[str]", say: Say) -> None:
    for line in lines:
        if line.startswith((ANSWER, LISTENS)):
            answers.put(line)
        if line.strip() and not line.startswith(ANSWER):
            say(Line(datetime.now(UTC), name, line.rstrip()))


def _answer(asked: Part, *others: Part) -> str:
    """Return the line by which a part says that it runs."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with suppress(Empty):
            return asked.answers.get(timeout=PAUSE_S)
        _refuse_ended(asked, *others)
    raise PartEnded(f"{asked.name} did not start within {START_S} seconds; what it said is above")


def _refuse_ended(*parts: Part) -> None:
    for one in parts:
        code = one.process.poll()
        if code is not None:
            raise PartEnded(f"{one.name} has ended with code {code}; what it said is above")
