"""Send bombs to a real console, and watch its answers and its memory."""

import asyncio
import base64
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import make_url

from embedding.images.decode import DECODE_BYTES
from flows.api.limits import MOST_BODIES, WAIT_S
from flows.service.pool import Backend
from storage.embedded.qdrant.process.discovery import find
from tests.flows.test_bombs import OWN_MIB
from tests.support import bombs
from tests.support.apis import API, a_key
from tests.support.builders import png
from tests.support.processes import a_free_port, environment_of, wait_until
from tests.support.tiny_clip import write_tiny_clip
from tests.support.watching import MIB, children, forget_peak, peak_mib, repeated

PATIENCE_S = 120
FAST_S, SLOWEST_S = 1.0, 5.0
"""Nine of ten answers to others, and each, while bombs are decoded beside it.

Where other tests take two cores as well, the slowest takes 0.6 to 1.4 s at a load of three or four, and 2.7 s
at a load of seven.
"""

GROWN_MIB = 150
"""What the console's own process takes for bombs: their bytes, and what its allocator keeps of them."""

MAX_BODY_BYTES = 8 * MIB
PASSWORD = "not a secret"
FEW = ("flat.webp", "more-scans.jpg", "large.gif", "tile.tiff")


@dataclass(frozen=True, slots=True)
class Served:
    """A running console with a searchable record."""

    url: str
    pid: int
    key: dict[str, str]

    @contextmanager
    def client(self) -> Iterator[httpx.Client]:
        """Yield a client with a key for the API and a session for pages."""
        with httpx.Client(base_url=self.url, headers=self.key, timeout=PATIENCE_S) as client:
            assert client.post("/login", data={"password": PASSWORD}).status_code == 303
            yield client


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def console(
    backend: Backend, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Served]:
    access, database, port = find(backend.settings.home), backend.settings.database_url, a_free_port()
    assert access is not None
    assert database is not None
    environment = environment_of(tmp_path / "home", make_url(database.get_secret_value()), access, model) | {
        "SIGHTLINE_CONSOLE__PORT": str(port),
        "SIGHTLINE_CONSOLE__PASSWORD": PASSWORD,
        "SIGHTLINE_API__REQUESTS_PER_MINUTE": "100000",
        "SIGHTLINE_API__MAX_BODY_BYTES": str(MAX_BODY_BYTES),
        "SIGHTLINE_MAX_PICTURE_BYTES": str(MAX_BODY_BYTES),
        "SIGHTLINE_API__PRIVATE_IMAGES": "true",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "flows.cli", "console"]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        served = Served(f"http://127.0.0.1:{port}", process.pid, a_key(backend, "admin"))
        wait_until(lambda: answers(served.url), patience_s=PATIENCE_S)
        warm(served)
        yield served
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def answers(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/healthz").is_success
    return False


def warm(console: Served) -> None:
    """Have the console do everything once: load the model, start a worker, show a page."""
    with console.client() as client:
        rose = {"key": "rose", "texts": ["red rose"], "image_base64": base64.b64encode(png()).decode()}
        sent(client, "shop", rose)
        assert search(client, png()).status_code == 200
        for ask in others(client):
            ask()


def others(client: httpx.Client) -> list[Callable[[], httpx.Response]]:
    """Requests without images."""
    return [
        partial(client.get, "/healthz"),
        partial(client.post, f"{API}/search", json={"text": "red rose"}),
        partial(client.get, "/search"),
    ]


@contextmanager
def answering_others(console: Served) -> Iterator[list[float]]:
    """Make the requests of others over and over, and check the answers; yield how long each has taken."""
    took: list[float] = []
    bad: list[str] = []
    ended = threading.Event()

    def keep_asking(ask: Callable[[], httpx.Response]) -> None:
        while not ended.wait(0.05):
            began = time.perf_counter()
            answer = ask()
            took.append(time.perf_counter() - began)
            if answer.status_code != 200:
                bad.append(answer.text)

    with console.client() as client:
        threads = [threading.Thread(target=keep_asking, args=(ask,)) for ask in others(client)]
        for thread in threads:
            thread.start()
        try:
            yield took
        finally:
            ended.set()
            for thread in threads:
                thread.join()
    assert bad == []


def is_fast(took: list[float]) -> bool:
    return max(took) < SLOWEST_S and sorted(took)[len(took) * 9 // 10] < FAST_S


@contextmanager
def watched(console: Served) -> Iterator[dict[str, float]]:
    """Yield the most MiB that the console's process has gained, and that a worker of it has had."""
    most = {"own": 0.0, "worker": 0.0}
    forget_peak(console.pid)
    before = peak_mib(console.pid)

    def look() -> None:
        most["worker"] = max(most["worker"], *map(peak_mib, children(console.pid)), 0.0)

    try:
        with repeated(look, every_s=0.1):
            yield most
    finally:
        most["own"] = peak_mib(console.pid) - before


def search(client: httpx.Client, data: bytes) -> httpx.Response:
    """Search by an image; retry while the console is too busy."""
    while True:
        answer = client.post(f"{API}/search", json={"image_base64": base64.b64encode(data).decode()})
        if answer.status_code != 503:
            return answer
        assert int(answer.headers["Retry-After"]) > 0
        time.sleep(0.5)


def by_search(client: httpx.Client, data: bytes) -> tuple[str | None, str]:
    """The reason why an image is rejected, None if it is searched by, and the message."""
    answer = search(client, data)
    if answer.status_code == 200:
        return None, ""
    problem = answer.json()
    assert answer.status_code == 422, problem
    return problem["type"].rpartition(":")[2].replace("-", "_"), problem["detail"].partition(": ")[2]


def by_upload(client: httpx.Client, data: bytes) -> str:
    """The error of an image uploaded on the search page; empty for none."""
    while True:
        answer = client.post("/search/pictures?name=bomb", content=data)
        told = answer.json() if answer.status_code == 200 else {"problem": "too many"}
        if "too many images" not in (problem := told.get("problem", "")):
            return str(problem).partition(": ")[2]
        time.sleep(0.5)


def sent(client: httpx.Client, source: str, *records: dict[str, Any]) -> dict[str, str]:
    """Why each of these records was rejected, by key, once the queue has dealt with them."""
    answer = client.post(f"{API}/records", json={"source": source, "records": records})
    assert answer.status_code == 202, answer.text
    place = f"{API}/receipts/{answer.json()['id']}"
    wait_until(lambda: client.get(place).json()["state"] not in ("queued", "running"), patience_s=PATIENCE_S)
    receipt = client.get(place).json()
    assert (receipt["state"], receipt["problem"]) == ("done", None)
    return {one["key"]: one["reason"] for one in receipt["rejects"]}


def as_bytes(images: dict[str, bytes]) -> list[dict[str, str]]:
    return [{"key": key, "image_base64": base64.b64encode(data).decode()} for key, data in images.items()]


@contextmanager
def hosted(images: dict[str, bytes]) -> Iterator[list[dict[str, str]]]:
    """Serve images; yield the records that name their URLs."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(images[self.path[1:]])

        def log_message(self, format: str, *args: Any) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield [{"key": key, "image": f"http://127.0.0.1:{server.server_port}/{key}"} for key in images]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("names", [FEW, pytest.param(tuple(bombs.OUTCOMES), marks=pytest.mark.full)])
def test_bombs_end_with_their_reasons_and_others_are_answered_meanwhile(
    console: Served, names: tuple[str, ...]
):
    images = {name: bombs.image(name) for name in names}
    reasons = {name: reason for name in names if (reason := bombs.OUTCOMES[name])}
    good = {f"good {number}": png(size=(16, 17 + number)) for number in range(3)}
    source = f"{len(names)} bombs"

    with (
        watched(console) as most,
        answering_others(console) as took,
        console.client() as client,
        ThreadPoolExecutor(12) as threads,
        hosted(images) as by_url,
    ):
        searched = {name: threads.submit(by_search, client, data) for name, data in images.items()}
        uploaded = {name: threads.submit(by_upload, client, data) for name, data in images.items()}
        queued = threads.submit(sent, client, source, *as_bytes(images | good))
        fetched = threads.submit(sent, client, f"{source} behind URLs", *by_url)
        found = {name: one.result() for name, one in searched.items()}
        problems = {name: one.result() for name, one in uploaded.items()}

        assert {name: reason for name, (reason, _) in found.items() if reason} == reasons
        assert problems == {name: sentence for name, (_, sentence) in found.items()}
        assert queued.result() == reasons
        assert fetched.result() == reasons

    assert is_fast(took)
    assert most["own"] < GROWN_MIB
    assert most["worker"] < DECODE_BYTES / MIB + OWN_MIB


@pytest.mark.full  # the limits are tried without a console anyway
@pytest.mark.parametrize("path", [f"{API}/search", "/search/pictures"])
def test_many_slow_uploads_hold_little_memory_and_keep_nobody_waiting(console: Served, path: str):
    body = b"x" * (MAX_BODY_BYTES - MIB)
    with console.client() as client:
        cookies = dict(client.cookies)
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {MAX_BODY_BYTES}",
        f"Cookie: {'; '.join(f'{name}={value}' for name, value in cookies.items())}",
        *(f"{name}: {value}" for name, value in console.key.items()),
    ]
    head = "\r\n".join([*lines, "", ""]).encode()
    port = httpx.URL(console.url).port or 0

    async def begin() -> bytes:
        """Send all but the end of a body; return the answer, if one comes."""
        loop = asyncio.get_running_loop()
        with socket.socket() as connection:
            connection.setblocking(False)
            await loop.sock_connect(connection, ("127.0.0.1", port))
            with suppress(TimeoutError):
                async with asyncio.timeout(2 * WAIT_S):
                    await loop.sock_sendall(connection, head + body)
                    return await loop.sock_recv(connection, 4096)
            return b""

    async def begin_many() -> list[bytes]:
        return await asyncio.gather(*(begin() for _ in range(40)))

    with watched(console) as most, answering_others(console) as took:
        found = asyncio.run(begin_many())

    refused = [answer for answer in found if answer.startswith(b"HTTP/1.1 503")]
    assert len(refused) >= 40 - MOST_BODIES
    assert all(b"retry-after: " in answer.lower() for answer in refused)
    assert most["own"] < GROWN_MIB
    assert is_fast(took)
