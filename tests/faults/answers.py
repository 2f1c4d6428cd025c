"""An HTTP proxy before the index, which answers faults in its place."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Answer:
    """A fault as a server words it."""

    status: int
    error: str = ""
    retry_after_s: int | None = None


@dataclass
class Answers:
    """Passes requests on, and answers some of them with a fault."""

    host: str
    to_port: int
    port: int = 0
    requests: int = 0
    answered: list[float] = field(default_factory=list)
    _fault: Answer | None = None
    _first: int = 0
    _many: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, fault: Answer | None, *, first: int = 1, many: int = 0) -> None:
        """Answer `fault` from the `first` request on, so many times; count from now."""
        with self._lock:
            self._fault, self._first, self._many = fault, first, many
            self.requests, self.answered = 0, []

    def next(self) -> Answer | None:
        with self._lock:
            self.requests += 1
            if self._fault is None or self.requests < self._first or len(self.answered) >= self._many:
                return None
            self.answered.append(time.monotonic())
            return self._fault


@contextmanager
def answers_before(host: str, port: int) -> Iterator[Answers]:
    """Start the proxy on a port of its own."""
    answers = Answers(host, port)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = answers.next()
            status, named, content = self._pass_on(body) if fault is None else _worded(fault)
            self.send_response_only(status)
            for name, value in named.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _pass_on(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection(answers.host, answers.to_port, timeout=30)
            connection.request(self.command, self.path, body, dict(self.headers))
            response = connection.getresponse()
            content = response.read()
            connection.close()
            return response.status, {"Content-Type": response.getheader("Content-Type", "")}, content

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    answers.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield answers
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _worded(fault: Answer) -> tuple[int, dict[str, str], bytes]:
    named = {"Content-Type": "application/json"}
    if fault.retry_after_s is not None:
        named["Retry-After"] = str(fault.retry_after_s)
    return fault.status, named, json.dumps({"status": {"error": fault.error}, "time": 0}).encode()
