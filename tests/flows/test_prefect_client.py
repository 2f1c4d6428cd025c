"""Which Prefect server a person's wishes go to, and with what; what it then does, `test_schedules` has."""

import json
import threading
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_UI_URL, temporary_settings

from flows.orchestration.prefect_client import NothingServes, open_prefect

PASSWORD = "ada:secret"


class Closed(BaseHTTPRequestHandler):
    """A Prefect server without a deployment, which lets in who has the password; its health is for all."""

    def do_GET(self) -> None:
        self._answer(200 if self.path.endswith("/health") else 404, True)  # 404: it wants no CSRF token

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        expected = f"Basic {b64encode(PASSWORD.encode()).decode()}"
        known = self.headers.get("Authorization") == expected
        self._answer(200 if known else 401, [])

    def _answer(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The API of a server that asks for a password, which Prefect has been told of."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Closed) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/api"
        monkeypatch.setenv("PREFECT_API_URL", url)
        yield url
        server.shutdown()
        thread.join()


def test_a_server_that_is_set_is_asked_with_its_password(closed: str, tmp_path: Path):
    given = {PREFECT_API_URL: closed, PREFECT_API_AUTH_STRING: PASSWORD}

    with temporary_settings(given), open_prefect(tmp_path) as prefect:
        assert prefect.deployed() == []


def test_a_password_that_is_wrong_is_named(closed: str, tmp_path: Path):
    given = {PREFECT_API_URL: closed, PREFECT_API_AUTH_STRING: "ada:wrong"}

    with (
        temporary_settings(given),
        pytest.raises(NothingServes, match="PREFECT_API_AUTH_STRING"),
        open_prefect(tmp_path) as prefect,
    ):
        prefect.deployed()


def test_pages_of_prefect_are_where_a_browser_finds_them(closed: str, tmp_path: Path):
    given = {PREFECT_API_URL: closed, PREFECT_API_AUTH_STRING: PASSWORD}

    with temporary_settings(given), open_prefect(tmp_path) as prefect:
        assert prefect.ui == closed.removesuffix("/api")
    with (
        temporary_settings(given | {PREFECT_UI_URL: "https://prefect.example"}),
        open_prefect(tmp_path) as prefect,
    ):
        assert prefect.ui == "https://prefect.example"
