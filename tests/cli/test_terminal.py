"""What strangers wrote is shown by a terminal, a log and a page, and is not obeyed."""

import io
import json
import logging
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from flows.cli.options import as_json_text
from flows.cli.program_name import program
from flows.cli.tables.format import show, table_of
from flows.config.settings import Settings
from flows.search.gallery import Card, Page, render
from flows.search.query import Query, search
from flows.service.pool import Backend
from flows.tracking.errors import explain
from flows.tracking.log_records import SafeRecord
from flows.tracking.text import visible
from tests.flows.test_images import Host, host  # noqa: F401 (a fixture)
from tests.support.apis import a_caller, taken_in, with_settings
from tests.support.builders import png

EVIL = "a\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\rb"
OBEYED = ("\x1b", "\x07", "\x9b", "\u202e", "\r")
TOKEN = "hunter2"


def test_a_table_shows_control_characters_by_their_codes(capsys: pytest.CaptureFixture[str]):
    table = table_of("key", EVIL)
    table.add_row(Text(EVIL), EVIL)

    show(table, Text(EVIL), EVIL)

    printed = capsys.readouterr().out
    assert [one for one in OBEYED if one in printed] == []
    assert printed.count("\\x1b[2J") >= 2


@pytest.mark.parametrize(("columns", "whole"), [("80", ["id"]), (None, ["id", "key", "why"])])
def test_a_terminal_folds_no_id_and_a_pipe_nothing(
    columns: str | None, whole: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    row = {
        "id": "0b2c6f0e-4a55-5d1c-9f0e-8a6d2b7c1e34",
        "key": "a/b/" * 30 + "c.png",
        "why": "no " * 70 + ".",
    }
    table = table_of(*row)
    table.add_row(*map(Text, row.values()))
    if columns:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", columns)

    show(table)

    printed = capsys.readouterr().out
    assert [name for name, text in row.items() if text in printed] == whole


def test_a_json_document_holds_the_text_and_no_control_character():
    written = as_json_text({"key": EVIL})

    assert [one for one in OBEYED if one in written] == []
    assert json.loads(written) == {"key": EVIL}


def test_an_error_is_one_line_that_a_terminal_can_have():
    said = explain(ValueError(f"{EVIL} at https://h/a.png?token={TOKEN}"))

    assert [one for one in (*OBEYED, TOKEN) if one in said] == []


def test_a_log_line_is_one_line_without_secrets_also_in_its_traceback():
    stream = io.StringIO()
    log = logging.Logger("test")
    log.addHandler(logging.StreamHandler(stream))
    url = f"https://h/a.png?sig={TOKEN}"

    def record(*args: object, **named: object) -> None:
        log.handle(SafeRecord("test", logging.ERROR, "file", 1, *args, **named))  # type: ignore[arg-type]

    record("key %s of %d failed", (f"{EVIL}\nERROR forged {url}", 7), None)
    try:
        raise ValueError(f"{EVIL} {url}")
    except ValueError as error:
        record("a bug", (), (type(error), error, error.__traceback__))

    written = stream.getvalue()
    assert [one for one in (*OBEYED, TOKEN) if one in written] == []
    assert "\\nERROR forged" in written
    assert "\nERROR" not in written


@given(st.text())
def test_a_text_without_control_characters_stays_as_it_is(text: str):
    shown = visible(text)

    assert visible(shown) == shown
    assert shown == text or len(shown) > len(text)


def test_a_page_escapes_what_strangers_wrote():
    card = Card(
        "<script>alert(1)</script>", '"><img>', 0.5, "<blink>", f"https://h/a.png?token={TOKEN}", None
    )

    page = render(Page("<i>", None, "images", "<u>", 1, (card,)))

    assert [one for one in ("<script>", "<img>", "<blink>", "<i>", "<u>", TOKEN) if one in page] == []


def test_whoever_may_read_sees_no_token_of_a_url(backend: Backend, host: Host):  # noqa: F811
    secret = f"{host.url}?X-Amz-Signature={TOKEN}".replace("http://", f"http://me:{TOKEN}@")
    forgetful = with_settings(backend, keep_pictures=False)
    with a_caller(forgetful, "admin") as caller:
        receipt = taken_in(
            forgetful,
            caller,
            {"key": "rose", "image": secret, "texts": ["red rose"]},
            {"key": "gone", "image": secret.replace("rose.png", "x").replace("http", "https")},
        )
        shown = [receipt["rejects"], caller.post("search", json={"text": "red"}).json()]
        id = shown[1]["hits"][0]["id"]
        shown.append(caller.get(f"records/{id}").json())
        assert caller.get(f"records/{id}/picture").content == png("red")  # the whole URL is kept for that
    with forgetful.searching() as deps:
        shown.append(search(deps, Query("red")).as_json())
    forgetful.close()

    assert TOKEN not in json.dumps(shown, default=str)
    assert "***" in shown[2]["picture"]["uri"]


def test_a_printed_command_starts_the_program_as_the_user_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    script = tmp_path / "my venv" / "sightline"
    script.parent.mkdir()
    script.touch(mode=0o755)
    usual = Settings.model_construct(home=Path(".sightline"), _fields_set=set())

    monkeypatch.setenv("PATH", str(tmp_path))
    assert program(usual, str(script)) == f"'{script}'"
    monkeypatch.setenv("PATH", str(script.parent))
    assert program(usual, str(script)) == "sightline"
    assert program(usual, "flows/cli/__main__.py") == f"{sys.executable} -m flows.cli"
    assert program(Settings(home=Path("/my data")), str(script)) == "SIGHTLINE_HOME='/my data' sightline"
