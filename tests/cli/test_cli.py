"""The command line as others script against it: real processes' code, real stores, the real starter."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from qdrant_client import QdrantClient
from sqlalchemy import Engine

from flows.cli import main
from storage.embedded.postgres.paths import PostgresPaths
from storage.embedded.postgres.server import postgres_runs, postgres_url, stop_postgres
from storage.embedded.qdrant.process.client import find_index
from storage.embedded.qdrant.process.discovery import find
from tests.conftest import emptied
from tests.support import forks
from tests.support.builders import a_folder, png
from tests.support.processes import HomeAt, environment_of

pytestmark = pytest.mark.services

COMMANDS = Path(__file__).parents[2] / "flows" / "cli" / "COMMANDS.md"


def sightline(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def sightline_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A flow gets a process of its own: Prefect's server and loggers live as long as that does."""
    return forks.sightline(*arguments)


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_help_and_is_in_the_reference(name: str):
    assert main.commands[name].help
    assert f"sightline {name}" in COMMANDS.read_text()


def test_help_lists_every_command_once_with_what_it_does():
    listed = [line for line in sightline("--help").stdout.splitlines() if line.startswith("  ")]

    for name, command in main.commands.items():
        assert [line.split(maxsplit=1)[1] for line in listed if line.split()[0] == name] == [
            command.short_help
        ]


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_option_has_help(name: str):
    options = [param for param in main.commands[name].params if isinstance(param, click.Option)]

    assert all(option.help for option in options)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ingest", "nowhere.jsonl"], "nowhere.jsonl"),
        (["ingest", ".", "--limit", "0"], "--limit"),
        (["ingest", ".", "--limit", "1", "--delete-missing"], "leave out --limit"),
        (["search"], "give a TEXT, --image FILE, or both"),
        (["search", ""], "give a TEXT, --image FILE, or both"),
        (["search", "red", "--find", "sounds"], "--find"),
        (["search", "red", "--where", "kind"], "--where takes K=V"),
        (["sing"], "No such command 'sing'"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_is_wrong(arguments: list[str], says: str):
    result = sightline(*arguments)

    assert result.exit_code == 2
    assert says in result.stderr


def test_looking_does_not_pay_for_prefect():
    probe = (
        "import sys; from click.testing import CliRunner; from flows.cli import main; "
        "[CliRunner().invoke(main, [name, '--help']) for name in ('status', 'search', 'rejects')]; "
        "import flows.service.status, flows.search.query, flows.cli.tables.status, flows.cli.tables.records; "
        "sys.exit('prefect' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_help_is_instant_because_it_loads_nothing_heavy():
    probe = (
        "import sys, flows.cli; sys.exit(bool({'torch', 'qdrant_client', 'prefect'} & sys.modules.keys()))"
    )

    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


@pytest.fixture
def home(
    engine: Engine,
    embedded: QdrantClient,
    index_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Path]:
    """An empty home, with the tests' Postgres and their index."""
    home, access = tmp_path / "home", find(index_home)
    assert access is not None
    for name, value in environment_of(home, engine.url, access, Path("starter")).items():
        monkeypatch.setenv(name, value)
    for _ in emptied(embedded):
        yield home


def document(result: Result) -> dict:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.usefixtures("home")
def test_status_before_anything_says_what_to_run():
    assert document(sightline("status", "--json"))["collection"] is None
    assert "sightline ingest SOURCE" in sightline("status").stdout


@pytest.mark.usefixtures("home")
def test_searching_before_anything_is_one_line_with_the_remedy_and_exits_with_1():
    result = sightline("search", "red")

    assert result.exit_code == 1
    assert result.stderr == (
        "Error: nothing has been ingested yet; run: sightline ingest SOURCE, or after a restore without "
        "vectors sightline reconcile --repair\n"
    )
    assert result.stdout == ""


@pytest.mark.usefixtures("home")
def test_the_traceback_shows_only_with_debug():
    quiet = sightline("search", "red", "--image", "nowhere.png")
    assert "Traceback" not in quiet.output

    loud = sightline("--debug", "search", "red")
    assert type(loud.exception).__name__ == "NoCollection"


@pytest.mark.usefixtures("home")
def test_a_search_before_there_is_anything_to_find_loads_no_model():
    probe = (
        "import sys; from click.testing import CliRunner; from flows.cli import main; "
        "result = CliRunner().invoke(main, ['search', 'red']); "
        "sys.exit(result.exit_code != 1 or 'torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


@pytest.mark.usefixtures("home")
def test_a_misspelt_setting_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SIGHTLINE_MODLE", "clip")

    result = sightline("status")

    assert result.exit_code == 1
    assert "SIGHTLINE_MODLE is no setting of Sightline; did you mean SIGHTLINE_MODEL?" in result.stderr


@pytest.mark.usefixtures("home")
def test_a_postgres_that_is_not_there_is_named_with_the_remedy_and_without_the_password(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("SIGHTLINE_DATABASE_URL", "postgresql+psycopg://me:hunter2@127.0.0.1:1/none")

    result = sightline("status")

    assert result.exit_code == 1
    assert "Postgres at 127.0.0.1:1/none does not answer" in result.stderr
    assert "SIGHTLINE_DATABASE_URL" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "hunter2" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        *(["status"], ["search", "red"], ["duplicates"], ["rejects"], ["rejects", "retry"], ["models"]),
        *(["evaluate"], ["finetune"], ["promote", "m"], ["reindex", "--model", "m"], ["rollback"]),
        *(
            ["delete", "a.png"],
            ["reconcile"],
            ["backup", "there"],
            ["purge"],
            ["runs", "acknowledge", "--all"],
        ),
        *(["move", "--to-servers"], ["keys", "list"], ["keys", "revoke", "k"], ["mcp"]),
    ],
    ids=" ".join,
)
def test_a_command_that_needs_stored_data_makes_no_data_directory_at_a_mistyped_path(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home = tmp_path / "mistyped"
    monkeypatch.setenv("SIGHTLINE_HOME", str(home))

    result = sightline(*arguments)

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"Error: there is no data directory at {home}; set SIGHTLINE_HOME to the path of yours, or make one "
        "here with: sightline ingest SOURCE\n"
    )
    assert not home.exists()


@pytest.fixture
def own_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home_at: HomeAt) -> Path:
    """A home that uses both servers of its own."""
    home = home_at(tmp_path / "own home")
    monkeypatch.setenv("SIGHTLINE_HOME", str(home))
    monkeypatch.delenv("SIGHTLINE_DATABASE_URL", raising=False)
    postgres_url(home)
    return home


def test_status_tells_of_both_servers_and_stop_ends_them(own_servers: Path):
    servers = {server["name"]: server for server in document(sightline("status", "--json"))["servers"]}

    assert servers["Postgres"]["address"] == str(PostgresPaths(own_servers.resolve()).sockets)
    assert servers["Qdrant"]["address"].startswith("http://127.0.0.1:")
    assert (servers["Qdrant"]["points"], servers["Postgres"]["points"]) == (0, None)
    for server in servers.values():
        os.kill(server["pid"], 0)
        assert server["bytes"] > 0
        assert datetime.now(UTC) - datetime.fromisoformat(server["since"]) < timedelta(minutes=5)
    table = sightline("status").stdout
    assert all(str(server["pid"]) in table for server in servers.values())

    assert sightline("stop").stdout == "Qdrant has stopped.\nPostgres has stopped.\n"
    assert sightline("stop").stdout == "Qdrant was not running.\nPostgres was not running.\n"
    assert find_index(own_servers) is None
    assert not postgres_runs(own_servers)


def test_start_runs_both_servers_in_the_foreground_until_stop(own_servers: Path):
    with foreground("start") as servers:
        assert "Postgres listens at" in next_line(servers, "Postgres")
        assert str(own_servers / "qdrant") in next_line(servers, "served at")

        again = sightline_process("start")
        assert again.returncode == 1
        assert f"as process {servers.pid}; run: sightline stop" in again.stderr
        assert document(sightline("status", "--json"))["servers"][1]["pid"] == servers.pid

        assert sightline("stop").exit_code == 0
        assert servers.wait(30) == 0
    assert not postgres_runs(own_servers)


def test_start_ends_with_an_error_when_postgres_ends_by_itself(own_servers: Path):
    with foreground("start") as servers:
        next_line(servers, "served at")

        stop_postgres(own_servers)

        assert servers.wait(30) == 1
    assert find_index(own_servers) is None


def test_start_leaves_alone_what_has_a_url_of_its_own(own_servers: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SIGHTLINE_QDRANT__URL", "http://127.0.0.1:1")

    with foreground("start") as servers:
        next_line(servers, "Postgres listens at")
        servers.terminate()
        assert servers.wait(30) == 0

    assert find_index(own_servers) is None
    monkeypatch.setenv("SIGHTLINE_DATABASE_URL", "postgresql+psycopg://me@127.0.0.1:1/none")
    assert "nothing of ours to start" in sightline_process("start").stderr


@contextmanager
def foreground(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on until it is told to end; its log is on its standard output."""
    command = [sys.executable, "-m", "flows.cli", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def next_line(process: subprocess.Popen[str], holding: str) -> str:
    """The next line that holds these words; fails when there is none before the end."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if holding in line:
            return line
    pytest.fail(f"no line with {holding!r} in {seen}")


@pytest.mark.full  # the README's commands are run anyway
@pytest.mark.usefixtures("home")
def test_the_whole_day_from_ingest_to_evaluate(tmp_path: Path):
    """One long test, because each step needs the one before, and each costs a model and a flow."""
    folder = a_folder(
        tmp_path / "shop",
        {
            "red.png": png("red", (64, 64)),
            "red.txt": "A plain red picture.\nde.utf8=Ein rotes Bild.",
            "blue.png": png("blue", (64, 64)),
            "blue.txt": "A plain blue picture.",
            "blue.json": '{"kind": "cold"}',
            "broken.png": b"no picture",
        },
    )

    planned = document(sightline("ingest", folder, "--dry-run", "--json"))
    assert (planned["outcome"], planned["embedded"], planned["rejected"]) == ("dry run", 3, 0)

    first = json.loads(sightline_process("ingest", folder, "--json").stdout)
    assert first.keys() >= {"read", "unchanged", "embedded", "rejected", "deleted", "seconds"}
    assert (first["read"], first["embedded"], first["rejected"]) == (3, 2, 1)

    [reject] = document(sightline("rejects", "--json"))["rejects"]
    assert (reject["place"], reject["reason"]) == ("broken.png", "not_a_picture")
    assert "broken.png" in sightline("rejects").stdout

    found = document(sightline("search", "a blue picture", "--find", "texts", "--json", "--limit", "1"))
    assert (found["query"], found["model"]) == ("a blue picture", "starter")
    [hit] = found["hits"]
    assert hit.keys() == {"id", "key", "source", "score", "text", "uri"}
    assert (hit["key"], hit["text"]) == ("blue.png", "A plain blue picture.")

    page = tmp_path / "page.html"
    result = sightline("search", "--image", folder / "red.png", "--find", "images", "--gallery", page)
    assert "red.png" in result.stdout.splitlines()[1]
    assert "A plain red picture." in page.read_text()

    both = document(sightline("search", "a plain picture", "--image", folder / "red.png", "--json"))
    assert (both["hits"][0]["key"], both["query"]) == ("red.png", "a plain picture")

    narrowed = document(sightline("search", "picture", "--where", "kind=cold", "--json"))
    assert [hit["key"] for hit in narrowed["hits"]] == ["blue.png"]

    plot = tmp_path / "recall.png"
    [figures] = document(sightline("evaluate", "--plot", plot, "--json"))["models"]
    assert figures["model"] == "starter"
    assert [(one["gallery"], one["queries"]) for one in figures["measured"]] == [(2, 2), (2, 2)]
    assert [one["figures"]["recall@5"]["value"] for one in figures["measured"]] == [1, 1]
    assert plot.read_bytes().startswith(b"\x89PNG")
    [figures] = document(sightline("evaluate", "--langs", "de", "--json"))["models"]
    assert figures["measured"][0]["queries"] == 1
    (tmp_path / "keys.txt").write_text("red.png\n")
    held_out = sightline("evaluate", "--keys", tmp_path / "keys.txt")
    assert "text to image, gallery 1" in held_out.stdout
    assert sightline("evaluate", "--held-out", "--keys", tmp_path / "keys.txt").exit_code == 2

    status = document(sightline("status", "--json"))
    assert (status["items"]["items"], status["collection_points"]) == (2, 2)
    assert status["rejects"] == {"not_a_picture": 1}
    assert [run["outcome"] for run in status["runs"]] == ["completed"]
    speed = status["last_ingest"]["counts"]["speed"]
    assert speed["records_per_s"] > 0
    assert speed["advice"] in " ".join(sightline("status").stdout.split())

    for name in (folder / "red.png", folder / "blue.png"):
        name.write_bytes(b"no picture any more")
    failed = sightline_process("ingest", folder, "--json")
    assert failed.returncode == 1
    assert json.loads(failed.stdout)["outcome"] == "failed"
    assert "Error: 3 of 3 records were rejected" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.usefixtures("home")
def test_the_demo_takes_ones_own_pictures_even_without_captions(tmp_path: Path):
    folder = a_folder(tmp_path / "mine", {"a.png": png("red", (64, 64)), "b.png": png("blue", (64, 64))})

    done = sightline_process("demo", folder)

    assert done.returncode == 0, done.stderr
    assert "no record has both an image and such a caption" in done.stdout
    assert (tmp_path / "home" / "demo" / "gallery.html").exists()
