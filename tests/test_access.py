"""Who may see the console."""

from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from starlette.datastructures import Headers

from flows.console.access import (
    COOKIE,
    FAILED_LOGIN_S,
    Guard,
    NotProtected,
    Sessions,
    add_login,
    is_foreign,
    refuse_open,
)
from flows.console.guesses import BURST, EVERY_S, Guesses
from flows.settings import Console

PASSWORD = "correct horse"


def guarded(home: Path, console: Console, client: str = "203.0.113.9") -> TestClient:
    """A page, the metrics and an API behind the guard, asked by `client` at a loopback address."""
    app = an_app(home, console)
    return TestClient(app, base_url="http://127.0.0.1:8080", client=(client, 50000), follow_redirects=False)


def an_app(home: Path, console: Console) -> FastAPI:
    sessions = None if console.password is None else Sessions(console.password.get_secret_value(), home)
    app = FastAPI()
    if sessions is not None:
        add_login(app, sessions)
    for path in ("/", "/metrics", "/healthz", "/api/v1/status"):
        app.get(path)(lambda: "shown")
        app.post(path)(lambda: "done")
    app.add_middleware(Guard, console=console, sessions=sessions)
    return app


@pytest.fixture
def with_password(tmp_path: Path) -> TestClient:
    return guarded(tmp_path, Console(password=SecretStr(PASSWORD)))


def test_on_loopback_whoever_is_there_sees_it(tmp_path: Path):
    assert guarded(tmp_path, Console()).get("/").text == '"shown"'


@pytest.mark.parametrize("name", ["elsewhere.example:8080", "127.0.0.1.elsewhere.example", ""])
def test_a_name_that_another_site_made_lead_here_is_refused(tmp_path: Path, name: str):
    assert guarded(tmp_path, Console()).get("/", headers={"Host": name}).status_code == 421


def test_a_form_of_another_site_is_refused_and_ours_is_not(tmp_path: Path):
    client = guarded(tmp_path, Console())

    assert client.post("/", headers={"Origin": "http://elsewhere.example"}).status_code == 403
    assert client.post("/", headers={"Origin": "http://127.0.0.1:8080"}).status_code == 200


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


def test_another_password_ends_the_sessions_of_the_last_one(tmp_path: Path):
    cookie = Sessions("the first one", tmp_path).new()

    assert Sessions("the first one", tmp_path).has(cookie)
    assert not Sessions("the second one", tmp_path).has(cookie)
    assert not Sessions("the first one", tmp_path).has(cookie + "x")
    assert (tmp_path / "console.key").stat().st_mode & 0o777 == 0o600


def test_a_program_reads_the_metrics_with_the_password(with_password: TestClient):
    def asked(password: str) -> int:
        given = b64encode(f"prometheus:{password}".encode()).decode()
        return with_password.get("/metrics", headers={"Authorization": f"Basic {given}"}).status_code

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


def test_pages_cannot_be_framed(tmp_path: Path):
    headers = guarded(tmp_path, Console()).get("/").headers

    assert headers["x-frame-options"] == "DENY"
    assert headers["content-security-policy"] == "frame-ancestors 'none'"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
def test_at_any_other_address_it_does_not_start_unprotected(host: str):
    with pytest.raises(NotProtected, match="SIGHTLINE_CONSOLE__PASSWORD"):
        refuse_open(Console(host=host))

    refuse_open(Console(host=host, password=SecretStr(PASSWORD)))
    refuse_open(Console(host=host, user_header="X-User"))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.9"])
def test_on_loopback_it_starts_as_it_is(host: str):
    refuse_open(Console(host=host))


def test_the_host_header_does_not_change_which_page_is_asked_for(with_password: TestClient):
    for host in ("127.0.0.1:8080/healthz?", "127.0.0.1:8080/login/", "127.0.0.1:8080/favicon.ico#"):
        assert with_password.get("/", headers={"Host": host}).status_code == 303


def test_the_host_header_does_not_open_the_metrics_or_shut_them(with_password: TestClient):
    given = {"Authorization": "Basic " + b64encode(f":{PASSWORD}".encode()).decode()}

    assert with_password.get("/metrics", headers={"Host": "h/x?"} | given).status_code == 200
    assert with_password.get("/", headers={"Host": "h/metrics?"} | given).status_code == 303


@pytest.mark.parametrize("client", ["10.0.0.2", "203.0.113.9"])
def test_only_our_proxy_says_what_host_was_asked_for(tmp_path: Path, client: str):
    ours = "10.0.0.2"
    asked = guarded(tmp_path, Console(proxies=(ours,)), client)
    told = {"Origin": "https://photos.example", "X-Forwarded-Host": "photos.example"}

    assert asked.post("/", headers=told).status_code == (200 if client == ours else 403)


def test_many_wrong_passwords_at_the_metrics_make_their_address_wait(with_password: TestClient):
    def asked(password: str) -> int:
        given = {"Authorization": "Basic " + b64encode(f":{password}".encode()).decode()}
        return with_password.get("/metrics", headers=given).status_code

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
