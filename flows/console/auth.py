"""Authenticate console users by password or by a proxy's header.

Where neither is set, the console listens on loopback, which every user of the machine reaches. There it
generates a password, and gives its user a link that signs in. The API and MCP have keys of their own, and
their requests pass.
"""

import asyncio
import hashlib
import hmac
import os
import secrets
from base64 import b64decode
from binascii import Error as NotBase64
from html import escape
from pathlib import Path
from threading import Lock
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import FastAPI, Form
from itsdangerous import BadData, URLSafeTimedSerializer
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from flows.config.addresses import is_loopback
from flows.config.settings import Console, Settings
from flows.console.login_guesses import Guesses
from storage.data_directory import SecretUnusable, load_or_create_secret, make_data_directory
from storage.errors import InvalidInput

COOKIE = "sightline_session"
SESSION_S = 7 * 86400
FAILED_LOGIN_S = 1.0
PASSWORD_BYTES = 24
MAX_FORM_BYTES = 16 * 2**10
"""Size limit of the sign-in form, which anyone may send: a form may have files, and thousands of fields."""

KEY_PROTECTED = ("/api/", "/mcp")
"""Paths that require keys of their own."""

PUBLIC = ("/healthz", "/login", "/favicon.ico")
SAFE = ("GET", "HEAD", "OPTIONS")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
}
LOGIN = (Path(__file__).parent / "login.html").read_text("utf-8")


class NotProtected(InvalidInput):
    """Report a console without protection at a public address."""


def require_protection(console: Console) -> None:
    """Raise `NotProtected` if others could reach the console without authentication."""
    if is_loopback(console.host) or console.password or console.user_header:
        return
    raise NotProtected(
        f"at {console.host} anyone could use the console; set SIGHTLINE_CONSOLE__PASSWORD, or behind a proxy "
        "that signs people in SIGHTLINE_CONSOLE__USER_HEADER, or listen at 127.0.0.1"
    )


def generates_password(console: Console) -> bool:
    """Return whether the console generates its password."""
    return console.password is None and console.user_header is None


def password_file(home: Path) -> Path:
    """Return the file of the generated password."""
    return home.absolute() / "console.password"


def generated_password(home: Path) -> str:
    """Return the console's password, generated at its first use.

    Raises:
        SecretUnusable: the file holds none or a short one, or others may read it.
    """
    make_data_directory(home)
    path = password_file(home)
    password = load_or_create_secret(path, lambda: secrets.token_urlsafe(PASSWORD_BYTES))
    if len(password) < PASSWORD_BYTES:
        raise SecretUnusable(
            f"the password in {path} is too short; set SIGHTLINE_CONSOLE__PASSWORD to choose one, or remove "
            "the file, and one is made at the next start"
        )
    return password


def sign_in_hint(settings: Settings, *, on_terminal: bool) -> str | None:
    """Return how to sign in with the generated password.

    None where none is generated.

    Args:
        on_terminal: whether only the user reads it. A log has other readers, and gets no link.
    """
    if not generates_password(settings.console):
        return None
    if on_terminal:
        return f"Sign in at {settings.console.url}/login?token={generated_password(settings.home)}"
    return f"The console requires the password in {password_file(settings.home)}"


class Sessions:
    """Sign and check session cookies.

    Another password, or another data directory, ends all sessions.

    Args:
        cookie: name of the cookie in the browser.
        file: the file of the password, if it was generated.
    """

    def __init__(self, password: str, home: Path, *, cookie: str = COOKIE, file: Path | None = None) -> None:
        self._password, self.cookie, self.file = password, cookie, file
        salt = hashlib.sha256(password.encode()).hexdigest()
        self._signer = URLSafeTimedSerializer(_key_of(home), salt=salt)
        self._ended = EndedSessions(home / "console.ended")
        self._guesses = Guesses()

    @classmethod
    def of(cls, settings: Settings) -> "Sessions | None":
        """Return the sessions of a console; None where only a proxy authenticates."""
        console, home = settings.console, settings.home
        if console.password is not None:
            return cls(console.password.get_secret_value(), home)
        if not generates_password(console):
            return None
        # a cookie is sent to all ports of a host, where another data directory may have its console
        cookie = f"{COOKIE}_{console.port}"
        return cls(generated_password(home), home, cookie=cookie, file=password_file(home))

    def wait_s(self, password: str, address: str) -> int:
        """Return the seconds until `address` may try a password; 0 for now.

        The right generated password never waits, since it cannot be guessed: all users of the machine share
        an address, and could lock each other out.
        """
        return 0 if self.file is not None and self.knows(password) else self._guesses.wait_s(address)

    def count_wrong(self, address: str) -> None:
        """Count a wrong password of `address`."""
        self._guesses.count_wrong(address)

    def knows(self, password: str) -> bool:
        return hmac.compare_digest(password.encode(), self._password.encode())

    def new(self) -> str:
        return str(self._signer.dumps({"session": secrets.token_urlsafe(16)}))

    def has(self, cookie: str | None) -> bool:
        id = self._id_of(cookie)
        return id is not None and id not in self._ended

    def end(self, cookie: str | None) -> None:
        """End a session for good, including copies of its cookie."""
        if (id := self._id_of(cookie)) is not None:
            self._ended.add(id)

    def _id_of(self, cookie: str | None) -> str | None:
        try:
            known = None if cookie is None else self._signer.loads(cookie, max_age=SESSION_S)
        except BadData:
            return None
        return str(known["session"]) if isinstance(known, dict) and "session" in known else None


class EndedSessions:
    """Store the ids of ended sessions on disk, shared by all consoles.

    A line holds an id and is appended whole. Only a session that was signed in adds one, so that they stay
    few.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._read_to = path, 0
        self._ids: set[str] = set()
        self._turn = Lock()

    def add(self, id: str) -> None:
        with os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w") as file:
            file.write(f"{id}\n")

    def __contains__(self, id: str) -> bool:
        with self._turn:
            self._read_on()
            return id in self._ids

    def _read_on(self) -> None:
        try:
            with self._path.open("rb") as file:
                file.seek(self._read_to)
                lines = [line for line in file if line.endswith(b"\n")]
        except FileNotFoundError:
            return
        self._read_to += sum(map(len, lines))
        self._ids |= {line.decode("ascii").strip() for line in lines}


def _key_of(home: Path) -> str:
    """Return the key that signs cookies, generated at its first use."""
    return load_or_create_secret(home / "console.key", lambda: secrets.token_urlsafe(32))


class Guard:
    """Reject unauthenticated requests, and those that other sites' pages cause."""

    def __init__(self, app: ASGIApp, console: Console, sessions: Sessions | None) -> None:
        self._app, self._console, self._sessions = app, console, sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["path"] == "/login":
            receive = _limited(MAX_FORM_BYTES, receive)
        rejection = (
            None if _starts_with(scope["path"], KEY_PROTECTED) else self._rejection(HTTPConnection(scope))
        )
        if rejection is None:
            await self._app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await WebSocketClose(code=1008)(scope, receive, send)
        else:
            await rejection(scope, receive, send)

    def _rejection(self, connection: HTTPConnection) -> Response | None:
        """Return the response that rejects a request; None to accept it."""
        # from the scope, as the router reads it: a URL includes the Host header
        path, headers = connection.scope["path"], connection.headers
        if is_foreign(
            connection.scope.get("method", "WEBSOCKET"), headers, by_proxy=self._is_by_proxy(connection)
        ):
            return PlainTextResponse("this request comes from another site's page\n", 403)
        is_local = generates_password(self._console) and path != "/healthz"
        if is_local and not is_loopback(host_of(headers.get("host", ""))):
            # DNS rebinding: another site's name resolves to this machine, and its pages could read ours
            return PlainTextResponse("the console answers to localhost and 127.0.0.1 alone\n", 421)
        if _starts_with(path, PUBLIC):
            return None
        if self._console.user_header is not None and self._is_named(connection):
            return None
        if self._sessions is not None:
            return self._without_session(self._sessions, connection)
        return PlainTextResponse("sign in through the proxy\n", 403)

    def _is_named(self, connection: HTTPConnection) -> bool:
        return self._is_by_proxy(connection) and bool(connection.headers.get(self._console.user_header or ""))

    def _is_by_proxy(self, connection: HTTPConnection) -> bool:
        return connection.client is not None and connection.client.host in self._console.proxies

    def _without_session(self, sessions: Sessions, connection: HTTPConnection) -> Response | None:
        if sessions.has(connection.cookies.get(sessions.cookie)):
            return None
        if (
            connection.scope["path"] == "/metrics"
        ):  # requested by a program, which has a password but no cookie
            given, address = _basic_password(connection.headers), address_of(connection)
            if given is not None and (wait_s := sessions.wait_s(given, address)):
                return too_many_attempts(wait_s)
            if given is not None and sessions.knows(given):
                return None
            if given is not None:
                sessions.count_wrong(address)
            return PlainTextResponse("unauthorized\n", 401, {"WWW-Authenticate": 'Basic realm="Sightline"'})
        if connection.scope["type"] == "http" and connection.scope["method"] == "GET":
            return RedirectResponse("/login", 303)
        return PlainTextResponse("sign in first\n", 401)


def host_of(address: str) -> str:
    """Return the host of an address, without its port.

    >>> host_of("localhost:8080"), host_of("[::1]:8080"), host_of("[::1"), host_of("")
    ('localhost', '::1', '', '')
    """
    try:
        return urlsplit(f"//{address}").hostname or ""
    except ValueError:  # a bracket that nothing closes
        return ""


def is_foreign(method: str, headers: Headers, *, by_proxy: bool = False) -> bool:
    """Return whether another site's page caused a state-changing request.

    Args:
        by_proxy: whether a trusted proxy sent it, which alone may state the requested host.
    """
    origin = headers.get("origin")
    if origin is None or method in SAFE:
        return False
    own = {headers.get("host"), headers.get("x-forwarded-host") if by_proxy else None}
    return origin.partition("://")[2] not in own


def add_login(app: FastAPI, sessions: Sessions) -> None:
    """Add the sign-in page and the sign-out address."""
    where = "" if sessions.file is None else f"The password is in {sessions.file}"
    form = LOGIN.replace("{{where}}", escape(where))

    @app.get("/login", include_in_schema=False)
    async def show_form(request: Request, token: str | None = None) -> Response:
        if token is None or sessions.file is None:  # links contain generated passwords only
            return HTMLResponse(form.replace("{{problem}}", ""))
        return await sign_in(request, token)

    @app.post("/login", include_in_schema=False)
    async def submit_form(request: Request, password: Annotated[str, Form()]) -> Response:
        return await sign_in(request, password)

    async def sign_in(request: Request, password: str) -> Response:
        address = address_of(request)
        if wait_s := sessions.wait_s(password, address):
            return too_many_attempts(wait_s)
        if not sessions.knows(password):
            sessions.count_wrong(address)
            await asyncio.sleep(FAILED_LOGIN_S)
            return HTMLResponse(form.replace("{{problem}}", "That is not the password."), 401)
        signed_in = RedirectResponse("/", 303)
        cookie = sessions.new()
        signed_in.set_cookie(sessions.cookie, cookie, max_age=SESSION_S, httponly=True, samesite="strict")
        return signed_in

    @app.get("/logout", include_in_schema=False)
    def sign_out(request: Request) -> Response:
        sessions.end(request.cookies.get(sessions.cookie))
        gone = RedirectResponse("/login", 303)
        gone.delete_cookie(sessions.cookie)
        return gone


def address_of(connection: HTTPConnection) -> str:
    """Return the address of a request's client; behind a proxy, the proxy's."""
    return "" if connection.client is None else connection.client.host


def too_many_attempts(wait_s: int) -> Response:
    """Return the response to an address with too many wrong passwords."""
    why = f"too many wrong passwords from your address; try again in {wait_s} s\n"
    return PlainTextResponse(why, 429, {"Retry-After": str(wait_s)})


def _starts_with(path: str, prefixes: tuple[str, ...]) -> bool:
    return any(path == one or path.startswith(one if one.endswith("/") else f"{one}/") for one in prefixes)


def _basic_password(headers: Headers) -> str | None:
    kind, _, given = headers.get("authorization", "").partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        return b64decode(given).decode().partition(":")[2]
    except (NotBase64, UnicodeDecodeError):
        return None


def _limited(max_bytes: int, receive: Receive) -> Receive:
    """Return a receiver that raises `ValueError` beyond `max_bytes`.

    FastAPI answers 400.
    """
    read = 0

    async def receiving() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > max_bytes:
            raise ValueError(f"the form has more than {max_bytes:,} bytes")
        return message

    return receiving


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending
