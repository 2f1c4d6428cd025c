"""Authentication of console users."""

import re
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from starlette.datastructures import URL, Headers
from starlette.requests import HTTPConnection

from flows.config.settings import Console, Settings
from flows.console import auth
from flows.console.auth import (
    COOKIE,
    FAILED_LOGIN_S,
    MAX_FORM_BYTES,
    Guard,
    NotProtected,
    Sessions,
    add_login,
    generated_password,
    is_foreign,
    password_file,
    require_protection,
    sign_in_hint,
)
from flows.console.login_guesses import BURST, EVERY_S, Guesses
from storage.data_directory import SecretUnusable

PASSWORD = "correct horse"
SOCKET = "ws://127.0.0.1:8080/socket"


def guarded(home: Path, console: Console, client: str = "203.0.113.9") -> TestClient:
    """A page, the metrics and an API behind the guard, requested by `client` at a loopback address."""
    app = an_app(home, console)
    return TestClient(app, base_url="http://127.0.0.1:8080", client=(client, 50000), follow_redirects=False)


def an_app(home: Path, console: Console) -> FastAPI:
    sessions = Sessions.of(Settings(home=home, console=console))
    app = FastAPI()
    if sessions is not None:
        add_login(app, sessions)
    for path in ("/", "/metrics", "/healthz", "/api/v1/status", "/mcp"):
        app.get(path)(lambda: "shown")
        app.post(path)(lambda: "done")
    app.add_middleware(Guard, console=console, sessions=sessions)

    @app.websocket("/socket")
    async def socket(accepted: WebSocket) -> None:
        await accepted.accept()
        await accepted.send_text("shown")

    return app


def link_of(home: Path, console: Console | None = None) -> str:
    """The address that `sightline console` prints on a terminal."""
    said = sign_in_hint(Settings(home=home, console=console or Console()), on_terminal=True)
    assert said is not None
    return said.removeprefix("Sign in at ")


def basic(password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + b64encode(f"prometheus:{password}".encode()).decode()}


@pytest.fixture
def with_password(tmp_path: Path) -> TestClient:
    return guarded(tmp_path, Console(password=SecretStr(PASSWORD)))


@pytest.fixture
def local(tmp_path: Path) -> TestClient:
    """A console on loopback for which nothing is set, requested by a user of the same machine."""
    return guarded(tmp_path, Console(), "127.0.0.1")


# --- on loopback, where nothing is set


def test_another_user_of_the_machine_gets_nothing(local: TestClient):
    assert (local.get("/").status_code, local.get("/").headers["location"]) == (303, "/login")
    assert local.post("/").status_code == 401
    assert local.get("/metrics").status_code == 401
    assert local.get("/", headers={"X-Forwarded-User": "ada"}).status_code == 303
    with pytest.raises(WebSocketDisconnect), local.websocket_connect(SOCKET):
        pass


def test_what_has_keys_of_its_own_and_the_health_need_no_session(local: TestClient):
    for path in ("/healthz", "/api/v1/status", "/mcp"):
        assert local.get(path).status_code == 200


def test_the_link_signs_in_and_leads_to_the_first_page(local: TestClient, tmp_path: Path):
    opened = local.get(link_of(tmp_path))

    assert (opened.status_code, opened.headers["location"]) == (303, "/")
    assert opened.headers["referrer-policy"] == "same-origin"
    cookie = opened.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert local.get("/").text == '"shown"'
    assert local.post("/").text == '"done"'
    with local.websocket_connect(SOCKET) as socket:
        assert socket.receive_text() == "shown"


def test_the_link_is_at_the_address_where_the_console_listens(tmp_path: Path):
    link = link_of(tmp_path, Console(host="::1", port=9001))

    assert re.fullmatch(r"http://\[::1\]:9001/login\?token=[\w-]{32}", link)


@pytest.mark.parametrize("token", ["", "wrong", "é", "x" * 10_000])
def test_a_link_with_a_wrong_token_is_rejected(local: TestClient, token: str):
    answer = local.get("/login", params={"token": token})

    assert (answer.status_code, "set-cookie" in answer.headers) == (401, False)
    assert local.get("/").status_code == 303


def test_wrong_tokens_are_counted_and_keep_nobody_with_the_right_one_out(
    local: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(auth, "FAILED_LOGIN_S", 0)
    given = generated_password(tmp_path)

    answers = [local.get(f"/login?token=guess-{number}").status_code for number in range(BURST + 10)]

    assert answers == [401] * BURST + [429] * 10
    assert local.post("/login", data={"password": "guess"}).status_code == 429
    assert local.get("/metrics", headers=basic("guess")).status_code == 429
    assert local.get("/metrics", headers=basic(given)).status_code == 200
    assert local.get(link_of(tmp_path)).status_code == 303  # the same address: another user's guesses


def test_the_form_says_where_the_password_is_and_not_which(local: TestClient, tmp_path: Path):
    page = local.get("/login").text
    wrong = local.post("/login", data={"password": "wrong"})

    assert str(password_file(tmp_path)) in page
    assert str(password_file(tmp_path)) in wrong.text
    assert generated_password(tmp_path) not in page + wrong.text
    assert local.post("/login", data={"password": generated_password(tmp_path)}).status_code == 303
    assert local.get("/").text == '"shown"'


def test_the_path_of_the_password_is_text_and_no_markup(tmp_path: Path):
    home = tmp_path / "<b>home"

    page = guarded(home, Console()).get("/login").text

    assert "&lt;b&gt;home" in page
    assert "<b>" not in page


def test_the_password_is_the_users_alone_and_kept_over_a_restart(local: TestClient, tmp_path: Path):
    file = password_file(tmp_path)
    link = link_of(tmp_path)
    local.get(link)
    again = guarded(tmp_path, Console())
    again.cookies = local.cookies

    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().strip() == generated_password(tmp_path)
    assert link_of(tmp_path) == link
    assert again.get("/").text == '"shown"'
    assert generated_password(tmp_path / "another") != generated_password(tmp_path)


def test_another_password_in_the_file_ends_the_sessions(local: TestClient, tmp_path: Path):
    local.get(link_of(tmp_path))
    password_file(tmp_path).unlink()
    again = guarded(tmp_path, Console())
    again.cookies = local.cookies

    assert again.get("/").status_code == 303


def test_a_short_password_is_not_used_as_one_that_nobody_guesses(tmp_path: Path):
    generated_password(tmp_path)
    password_file(tmp_path).write_text("hunter2")

    with pytest.raises(SecretUnusable, match="too short"):
        generated_password(tmp_path)


def test_a_program_reads_the_metrics_of_loopback_with_the_made_password(local: TestClient, tmp_path: Path):
    assert local.get("/metrics", headers=basic("wrong")).status_code == 401
    assert local.get("/metrics", headers=basic(generated_password(tmp_path))).status_code == 200


def test_the_link_is_for_a_terminal_and_a_log_gets_the_path_alone(tmp_path: Path):
    settings = Settings(home=tmp_path)

    said = sign_in_hint(settings, on_terminal=False)

    assert said is not None
    assert str(password_file(tmp_path)) in said
    assert generated_password(tmp_path) not in said


def test_two_consoles_of_one_machine_keep_their_sessions_in_one_browser(tmp_path: Path):
    homes = {tmp_path / "first": Console(port=8080), tmp_path / "second": Console(port=8081)}
    browser: dict[str, str] = {}  # which sends the cookies of a host to all its ports

    for home, console in homes.items():
        client = guarded(home, console)
        client.get(link_of(home))
        browser |= client.cookies

    for home, console in homes.items():
        client = guarded(home, console)
        client.cookies.update(browser)
        assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    "console",
    [Console(password=SecretStr(PASSWORD)), Console(user_header="X-User")],
    ids=["password", "proxy"],
)
def test_where_a_password_or_a_header_is_set_none_is_made(tmp_path: Path, console: Console):
    client = guarded(tmp_path, console)

    assert sign_in_hint(Settings(home=tmp_path, console=console), on_terminal=True) is None
    assert not password_file(tmp_path).exists()
    assert client.get(f"/login?token={PASSWORD}").status_code in (200, 404)
    assert not client.cookies


@pytest.mark.parametrize("name", ["elsewhere.example:8080", "127.0.0.1.elsewhere.example", ""])
def test_a_name_that_another_site_made_lead_here_is_rejected(local: TestClient, tmp_path: Path, name: str):
    local.get(link_of(tmp_path))
    session = {"Cookie": "; ".join(f"{name}={value}" for name, value in local.cookies.items())}

    for path in ("/", "/metrics", "/login", link_of(tmp_path)):
        assert local.get(path, headers={"Host": name} | session).status_code == 421
    assert local.get("/healthz", headers={"Host": name}).status_code == 200


def test_a_page_of_another_origin_is_rejected_even_with_the_session_and_ours_is_not(
    local: TestClient, tmp_path: Path
):
    local.get(link_of(tmp_path))

    for origin in ("http://elsewhere.example", "http://127.0.0.1:9999"):
        assert local.post("/", headers={"Origin": origin}).status_code == 403
        assert local.post("/login", headers={"Origin": origin}).status_code == 403
        with (
            pytest.raises(WebSocketDisconnect),
            local.websocket_connect(SOCKET, headers={"Origin": origin}),
        ):
            pass
    assert local.post("/", headers={"Origin": "http://127.0.0.1:8080"}).status_code == 200


# --- at any address


@given(
    st.sampled_from(["POST", "PUT", "DELETE", "PATCH", "WEBSOCKET"]),
    st.text(st.characters(codec="latin-1")).filter(lambda name: name != "127.0.0.1:8080"),
)
def test_no_other_origin_ever_acts(method: str, name: str):
    assert is_foreign(method, Headers({"host": "127.0.0.1:8080", "origin": f"http://{name}"}))


def test_elsewhere_nothing_is_shown_before_the_password(with_password: TestClient):
    page = with_password.get("/")
    acted = with_password.post("/")

    assert (page.status_code, page.headers["location"]) == (303, "/login")
    assert acted.status_code == 401
    assert with_password.get("/healthz").status_code == 200


def test_the_password_opens_it_and_a_wrong_one_does_not(with_password: TestClient):
    wrong = with_password.post("/login", data={"password": "wrong"})
    right = with_password.post("/login", data={"password": PASSWORD})

    assert (wrong.status_code, "not the password" in wrong.text) == (401, True)
    cookie = right.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert with_password.get("/").text == '"shown"'


@pytest.mark.parametrize("part", [{"data": {"x": "y" * MAX_FORM_BYTES}}, {"files": {"x": b"y" * 2**20}}])
def test_a_form_of_any_size_is_not_read_from_who_has_no_password(with_password: TestClient, part: Any):
    sent = {"data": {"password": PASSWORD}} | part

    assert with_password.post("/login", **sent).status_code == 400


def test_another_password_ends_the_sessions_of_the_last_one(tmp_path: Path):
    cookie = Sessions("the first one", tmp_path).new()

    assert Sessions("the first one", tmp_path).has(cookie)
    assert not Sessions("the second one", tmp_path).has(cookie)
    assert not Sessions("the first one", tmp_path).has(cookie + "x")
    assert (tmp_path / "console.key").stat().st_mode & 0o777 == 0o600


def test_a_program_reads_the_metrics_with_the_password(with_password: TestClient):
    def asked(password: str) -> int:
        return with_password.get("/metrics", headers=basic(password)).status_code

    assert with_password.get("/metrics").status_code == 401
    assert (asked("wrong"), asked(PASSWORD)) == (401, 200)


def test_the_api_has_keys_of_its_own(with_password: TestClient):
    assert with_password.get("/api/v1/status").status_code == 200


def test_a_proxy_says_who_it_is_and_nobody_else_can(tmp_path: Path):
    console = Console(user_header="X-Forwarded-User", proxies=("10.0.0.2",))
    named = {"X-Forwarded-User": "ada"}

    assert guarded(tmp_path, console, "10.0.0.2").get("/", headers=named).status_code == 200
    assert guarded(tmp_path, console, "10.0.0.2").get("/").status_code == 403
    assert guarded(tmp_path, console, "10.0.0.3").get("/", headers=named).status_code == 403


def test_pages_cannot_be_framed(local: TestClient, tmp_path: Path):
    local.get(link_of(tmp_path))
    headers = local.get("/").headers

    assert headers["x-frame-options"] == "DENY"
    assert headers["content-security-policy"] == "frame-ancestors 'none'"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
def test_at_any_other_address_it_does_not_start_unprotected(host: str):
    with pytest.raises(NotProtected, match="SIGHTLINE_CONSOLE__PASSWORD"):
        require_protection(Console(host=host))

    require_protection(Console(host=host, password=SecretStr(PASSWORD)))
    require_protection(Console(host=host, user_header="X-User"))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.9"])
def test_on_loopback_it_starts_as_it_is(host: str):
    require_protection(Console(host=host))


@pytest.fixture
def _credulous_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the URL of a request be built from the Host header, as older libraries do."""

    def url(asked: HTTPConnection) -> URL:
        return URL(f"http://{asked.headers['host']}{asked.scope['path']}")

    monkeypatch.setattr(HTTPConnection, "url", property(url))


@pytest.mark.usefixtures("_credulous_library")
def test_the_host_header_does_not_change_which_page_is_asked_for(with_password: TestClient):
    for host in ("127.0.0.1:8080/healthz?", "127.0.0.1:8080/login/", "127.0.0.1:8080/favicon.ico#"):
        assert with_password.get("/", headers={"Host": host}).status_code == 303


@pytest.mark.usefixtures("_credulous_library")
def test_the_host_header_does_not_open_the_metrics_or_shut_them(with_password: TestClient):
    given = basic(PASSWORD)

    assert with_password.get("/metrics", headers={"Host": "h/x?"} | given).status_code == 200
    assert with_password.get("/", headers={"Host": "h/metrics?"} | given).status_code == 303


@pytest.mark.parametrize("client", ["10.0.0.2", "203.0.113.9"])
def test_only_our_proxy_says_what_host_was_asked_for(tmp_path: Path, client: str):
    ours = "10.0.0.2"
    asked = guarded(tmp_path, Console(proxies=(ours,)), client)
    asked.get(link_of(tmp_path))
    told = {"Origin": "https://photos.example", "X-Forwarded-Host": "photos.example"}

    assert asked.post("/", headers=told).status_code == (200 if client == ours else 403)


def test_many_wrong_passwords_at_the_metrics_make_their_address_wait(with_password: TestClient):
    def asked(password: str) -> int:
        return with_password.get("/metrics", headers=basic(password)).status_code

    answers = [asked(f"guess {number}") for number in range(200)]

    assert answers.count(401) == BURST
    assert asked(PASSWORD) == 429  # or it could go on guessing
    assert with_password.post("/login", data={"password": PASSWORD}).status_code == 429


def test_wrong_logins_do_not_delay_the_right_one(tmp_path: Path):
    app = an_app(tmp_path, Console(password=SecretStr(PASSWORD)))
    with TestClient(app, client=("198.51.100.7", 1), follow_redirects=False) as stranger:
        with ThreadPoolExecutor(15) as threads:
            wrong = [threads.submit(stranger.post, "/login", data={"password": "wrong"}) for _ in range(15)]
            began = perf_counter()
            right = stranger.post("/login", data={"password": PASSWORD})
            took_s = perf_counter() - began
        assert {one.result().status_code for one in wrong} == {401}

    assert right.status_code == 303
    assert took_s < FAILED_LOGIN_S * 5


def test_an_address_that_guesses_makes_no_other_one_wait():
    now = 0.0
    guesses = Guesses(lambda: now)
    for _ in range(BURST):
        assert guesses.wait_s("2001:db8::1") == 0
        guesses.count_wrong("2001:db8::1")

    assert guesses.wait_s("2001:db8::ffff:1") == EVERY_S  # the same network
    assert guesses.wait_s("2001:db8:1::1") == guesses.wait_s("192.0.2.1") == 0
    now = EVERY_S
    assert guesses.wait_s("2001:db8::1") == 0


def test_a_session_that_was_signed_out_is_good_nowhere(tmp_path: Path):
    client = guarded(tmp_path, Console(password=SecretStr(PASSWORD)))
    client.post("/login", data={"password": PASSWORD})
    copied = client.cookies[COOKIE]
    other = Sessions(PASSWORD, tmp_path)
    still = other.new()
    assert client.get("/").status_code == 200

    client.get("/logout")

    assert client.get("/", headers={"Cookie": f"{COOKIE}={copied}"}).status_code == 303
    assert (other.has(copied), other.has(still)) == (False, True)
    assert not Sessions(PASSWORD, tmp_path).has(copied)
