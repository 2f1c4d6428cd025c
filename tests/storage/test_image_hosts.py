"""Hosts of images are asked as they wish: a name, a rate, a pause; and no host gets another's secret."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from typing import Any, ClassVar

import pytest

from storage.sources import FetchError, fetch, http_fetch
from storage.sources.host_rules import HostRules, Pace

IMAGE = b"an image"
HEADERS = {"127.0.0.1": {"Authorization": "secret"}, "*": {"Accept": "image/*"}}


class Host(BaseHTTPRequestHandler):
    """`/429` and `/503` are busy once, `/busy` always, `/away` redirects to this server's other name."""

    requests: ClassVar[list[tuple[str, dict[str, str]]]] = []

    def do_GET(self) -> None:
        again = any(path == self.path for path, _ in self.requests)
        self.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        match self.path.strip("/"), again:
            case "429" | "503" as status, False:
                self._answer(int(status), Retry_After="1")
            case "busy", _:
                self._answer(429, Retry_After="1")
            case "later", _:
                self._answer(503, Retry_After="86400")
            case "away", _:
                self._answer(302, Location=f"http://localhost:{self.server.server_port}/image")
            case _:
                self._answer(200, IMAGE)

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


@contextmanager
def a_host() -> Iterator[str]:
    Host.requests.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def pace(monkeypatch: pytest.MonkeyPatch) -> Pace:
    """A pace of this test, so that no pause outlives it."""
    new = Pace()
    monkeypatch.setattr(http_fetch, "PACE", new)
    return new


def fetched(url: str, **rules: Any) -> bytes:
    rules = {"wait_s": 5, "headers": HEADERS} | rules
    return fetch(url, max_bytes=99, timeout_s=0.5, private_redirects=True, hosts=HostRules(**rules))


@pytest.mark.parametrize("status", ["429", "503"])
def test_a_host_that_names_a_later_time_is_waited_for_beyond_the_timeout_of_an_answer(status: str):
    with a_host() as url:
        began = monotonic()

        assert fetched(f"{url}/{status}") == IMAGE
        assert 1 <= monotonic() - began < 4
        assert len(Host.requests) == 2


@pytest.mark.parametrize(("path", "wait_s", "requests"), [("busy", 1.5, 2), ("later", 5, 1)])
def test_a_host_that_stays_busy_costs_each_image_no_more_than_the_wait(
    path: str, wait_s: float, requests: int
):
    with a_host() as url:
        began = monotonic()
        refusals = []
        for _ in range(3):
            with pytest.raises(FetchError, match="busy, and asks for the next request in") as refusal:
                fetched(f"{url}/{path}", wait_s=wait_s)
            refusals.append(refusal.value)

        assert {one.reason for one in refusals} == {"unreachable"}
        assert "raise SIGHTLINE_FETCH_WAIT_S" in str(refusals[-1])
        assert monotonic() - began < 2 * wait_s
        assert len(Host.requests) == requests  # the others leave it alone until its time


def test_the_headers_of_a_host_are_not_sent_to_the_host_that_it_redirects_to():
    with a_host() as url:
        assert fetched(f"{url}/away", contact="us@x.org") == IMAGE

    (_, first), (_, second) = Host.requests
    assert (first["authorization"], first["accept"]) == ("secret", "image/*")
    assert "authorization" not in second
    assert first["user-agent"] == second["user-agent"]
    assert second["user-agent"].startswith("Sightline/")
    assert second["user-agent"].endswith("(+us@x.org)")


def test_a_redirect_to_plain_http_gets_no_configured_header():
    assert HostRules(headers=HEADERS).headers_for("127.0.0.1", is_downgraded=True).keys() == {"User-Agent"}


def test_each_host_of_a_redirect_keeps_its_rate(pace: Pace, monkeypatch: pytest.MonkeyPatch):
    waited: list[tuple[str, float]] = []
    monkeypatch.setattr(pace, "wait", lambda host, rate: waited.append((host, rate)))

    with a_host() as url:
        fetched(f"{url}/away", rate=4)

    assert waited == [("127.0.0.1", 4), ("localhost", 4)]
