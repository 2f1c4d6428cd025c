"""Ctrl-C ends a command at once, whatever its threads wait for, and its run is on record as cancelled."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from click.testing import CliRunner
from qdrant_client import QdrantClient
from sqlalchemy import Engine, text

from embedding.pipeline import in_background, prefetch
from flows.cli import interrupts, main
from storage.embedded.qdrant.process.discovery import find
from tests.conftest import emptied
from tests.support import forks
from tests.support.processes import environment_of
from tests.support.tiny_clip import write_tiny_clip


class SlowHost:
    """A host that answers no image until the test is over, and says whether one was requested."""

    def __init__(self) -> None:
        self.requested, self.over = threading.Event(), threading.Event()
        host = self

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/requested":
                    host.requested.wait(60)
                else:
                    host.requested.set()
                    host.over.wait(60)
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Keep quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def slow_host() -> Iterator[SlowHost]:
    host = SlowHost()
    threading.Thread(target=host.server.serve_forever, daemon=True).start()
    yield host
    host.over.set()
    host.server.shutdown()
    host.server.server_close()


def interrupted(url: str, *arguments: str) -> None:
    """Run a command that gets a Ctrl-C once the host has been asked for an image."""

    def press() -> None:
        urlopen(f"{url}/requested", timeout=60).close()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    forks.command_line(*arguments)


def test_an_ingest_that_waits_for_a_slow_host_ends_as_cancelled(
    engine: Engine,
    embedded: QdrantClient,
    index_home: Path,
    tmp_path: Path,
    slow_host: SlowHost,
    monkeypatch: pytest.MonkeyPatch,
):
    access, manifest, model = find(index_home), tmp_path / "m.jsonl", tmp_path / "model"
    assert access is not None
    write_tiny_clip(model)
    manifest.write_text(json.dumps({"key": "a", "image": f"{slow_host.url}/a.png", "texts": ["a"]}))
    for name, value in environment_of(tmp_path / "home", engine.url, access, model).items():
        monkeypatch.setenv(name, value)

    for _ in emptied(embedded):
        ended = forks.run(interrupted, slow_host.url, "ingest", str(manifest))

    assert not slow_host.over.is_set()  # the command has ended, and the host has not answered
    assert ended.returncode == interrupts.EXIT_STATUS
    assert "Cancelled: records that are stored are kept" in ended.stderr
    assert "Traceback" not in ended.stderr
    with engine.begin() as connection:
        runs = connection.execute(text("select outcome, error from runs")).all()
    assert [tuple(run) for run in runs] == [("cancelled", "KeyboardInterrupt")]


@contextmanager
def stopped_in(stage: Any, step: threading.Event) -> Iterator[None]:
    """Stop while a thread of the stage is at its step."""
    with stage as hand_on:
        if callable(hand_on):
            hand_on(1)
        step.wait(60)
        yield


@pytest.mark.parametrize("kind", [prefetch, in_background])
def test_a_stop_waits_for_no_thread(kind: Any):
    step, over = threading.Event(), threading.Event()

    def hang(_: object) -> None:
        step.set()
        over.wait(60)

    stage = prefetch(map(hang, [1, 2])) if kind is prefetch else in_background(hang)
    with pytest.raises(KeyboardInterrupt), stopped_in(stage, step):
        raise KeyboardInterrupt

    assert not over.is_set()
    over.set()


def test_an_error_waits_for_its_threads():
    step, done = threading.Event(), list[int]()

    def work(item: int) -> None:
        step.set()
        done.append(item)

    with pytest.raises(ValueError, match="wrong"), stopped_in(in_background(work), step):
        raise ValueError("wrong")

    assert done == [1]


def test_a_second_ctrl_c_is_that_of_the_system():
    seen: list[Any] = []

    @main.command("hang", hidden=True)
    def hang() -> None:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        seen.append(signal.getsignal(signal.SIGINT))

    try:
        before = signal.getsignal(signal.SIGINT)
        CliRunner().invoke(main, ["hang"], catch_exceptions=False)
    finally:
        del main.commands["hang"]

    assert seen == [signal.SIG_DFL]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("command", interrupts.KEPT)
def test_each_command_with_a_sentence_exists(command: str):
    assert command in main.commands
