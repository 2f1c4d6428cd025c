"""The README and the pages beside the code: their commands and code run here as they stand there."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest

from flows.config.settings import Schedules
from tests.faults import test_proxy, test_servers
from tests.faults.points import (
    BACKUP,
    DELETE,
    EVERYWHERE,
    FIRST_INGEST,
    MOVE,
    OFTEN,
    REINDEX,
    REPAIR,
    RESTORE,
    SECOND_INGEST,
)
from tests.faults.proxy import How
from tests.faults.test_proxy import STORES
from tests.support import forks
from tests.support.builders import a_folder, png
from tests.support.processes import homes

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
RUNNING = (ROOT / "flows" / "README.md").read_text()
STORES_PAGE = (ROOT / "storage" / "README.md").read_text()
PAGES = sorted(path for path in ROOT.glob("**/*.md") if ".venv" not in path.parts)


def block(language: str, holding: str, page: str = README) -> str:
    """The one code block of a page in `language` that holds these words."""
    [found] = [code for code in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) if holding in code]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder as a reader would have it: pictures in `photos`, and nothing set."""
    here = tmp_path_factory.mktemp("reader")
    a_folder(
        here / "photos",
        {
            "apple.png": png("red", (64, 64)),
            "apple.txt": "a red apple",
            "apple.json": '{"kind": "fruit"}',
            "leaf.png": png("green", (64, 64)),
            "leaf.txt": "a green leaf",
        },
    )
    with homes() as home_at:
        home_at(here / ".sightline")
        yield here


def said(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def sightline(folder: Path, *arguments: str) -> str:
    return said(forks.sightline(*arguments, folder=folder))


def script(folder: Path, code: str) -> str:
    return said(forks.script(code, folder=folder))


def installed(*arguments: str) -> list[str]:
    """The command as it was installed: a Python of its own."""
    return [str(Path(sys.executable).with_name("sightline")), *arguments]


@pytest.fixture(scope="module")
def printed(folder: Path) -> dict[str, str]:
    """What each of the README's commands for one's own pictures prints there."""
    return {
        line: sightline(folder, *shlex.split(line)[1:])
        for line in block("bash", "sightline ingest photos").splitlines()
    }


def test_the_commands_for_ones_own_pictures_work_as_they_stand(folder: Path, printed: dict[str, str]):
    assert "embedded   2" in printed["sightline ingest photos"]
    assert "leaf.png" in printed['sightline search "a red apple"']
    narrowed = 'sightline search "a red apple" --where kind=fruit --limit 5 --gallery apples.html'
    assert "leaf.png" not in printed[narrowed]
    assert "<html" in (folder / "apples.html").read_text()
    assert "No open rejects" in printed["sightline rejects"]
    assert "2 in 1 sources" in printed["sightline status"]


@pytest.mark.usefixtures("printed")
def test_the_command_is_installed_and_needs_nothing_but_the_folder(folder: Path):
    search = installed(*shlex.split('search "a red apple" --json'))
    done = subprocess.run(search, cwd=folder, capture_output=True, text=True, check=False)

    assert {hit["key"] for hit in json.loads(said(done))["hits"]} == {"apple.png", "leaf.png"}


@pytest.mark.usefixtures("printed")
def test_the_plain_client_finds_what_the_command_finds(folder: Path):
    plain = script(folder, block("python", "QdrantClient"))

    hits = json.loads(sightline(folder, "search", "a red apple", "--json"))["hits"]
    assert plain.splitlines() == [f"{hit['score']:.3f}  {hit['key']}" for hit in hits]
    assert len(hits) == 2


@pytest.mark.usefixtures("printed")
def test_a_search_kept_warm_finds_what_the_command_finds(folder: Path):
    warm = script(folder, block("python", "open_search"))

    expected = []
    for words in ("a red apple", "a green leaf"):
        hits = json.loads(sightline(folder, "search", words, "--limit", "3", "--json"))["hits"]
        expected += [f"{words}: {hit['score']:.3f}  {hit['key']}" for hit in hits]
    assert warm.splitlines() == expected
    assert len(expected) == 4


@pytest.mark.full  # without the ingest it is tried anyway
@pytest.mark.usefixtures("printed")
def test_the_plain_client_works_in_another_process_while_an_ingest_runs(folder: Path):
    a_folder(folder / "more", {f"{number}.png": png("blue", (64, 64)) for number in range(200)})
    command = installed("ingest", "more", "--json")

    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as ingest:
        plain = script(folder, block("python", "QdrantClient"))
        was_running = ingest.poll() is None
        report, _ = ingest.communicate(timeout=120)

    assert was_running
    assert "apple.png" in plain
    assert json.loads(report)["embedded"] == 200


def test_the_schedules_of_the_page_are_those_of_the_settings():
    crons = Schedules().model_dump()

    assert (crons["ingest"], crons["evaluate"]) == ("0 * * * *", "30 2 * * *")
    assert (crons["reconcile"], crons["purge"]) == ("30 3 * * *", "30 4 * * *")
    for flow, when in {"ingest": "hourly", "evaluate": "2:30", "reconcile": "3:30", "purge": "4:30"}.items():
        assert f"| `{flow}` | {when} |" in RUNNING
    for flow in ("finetune", "backup", "prove"):
        assert crons[flow] is None
        assert f"| `{flow}` | off |" in RUNNING


def test_the_page_counts_the_faults_that_are_tried():
    points = (FIRST_INGEST + SECOND_INGEST, DELETE, REPAIR, BACKUP, RESTORE, REINDEX, MOVE)
    breaks = len(STORES) * len(get_args(How))

    names = ("an ingest", "a delete", "a repair", "a backup", "a restore", "a re-index", "a move")
    tried = (len(set(each) & set(OFTEN)) for each in points)
    kills = ", ".join(f"{many} of {name}" for many, name in zip(tried, names, strict=True))
    assert f"{kills} | {len(OFTEN)} points |" in STORES_PAGE
    stays, comes_back = len(test_proxy.STAYING), len(test_proxy.RETURNING)
    assert f"for a second, in the middle of an ingest | {comes_back} times |" in STORES_PAGE
    assert f"the next one finishes | {stays} times |" in STORES_PAGE
    assert f"| {len(test_servers.FIND) * test_servers.SEEDS} times |" in STORES_PAGE
    more = breaks * (test_proxy.MORE_SEEDS + 1) - comes_back - stays
    servers = len(test_servers.FIND) * (test_servers.MORE_SEEDS - test_servers.SEEDS)
    rare = len(EVERYWHERE) - len(OFTEN)
    assert f"adds {rare} kill points, {more} broken connections and {servers} killed servers" in STORES_PAGE


def test_the_gate_runs_the_test_command_of_the_readme():
    targets = re.findall(r"^make (\w+)", block("bash", "make demo"), re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()

    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_is_there(page: Path):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_front_page_is_short_and_leads_to_all_others():
    links = set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))

    assert len(README.splitlines()) <= 160
    assert {f"{folder}/README.md" for folder in ("flows", "embedding", "storage", "infra", "tests")} <= links


@pytest.mark.usefixtures("printed")
def test_the_public_python_api_works_as_the_page_says(folder: Path):
    printed = script(folder, block("python", "vectors.shape", RUNNING))

    assert printed == "(2, 384) float32\n"
    for module, names in re.findall(r"`from ([\w.]+) import ([\w, ]+)`", RUNNING):
        public = import_module(module)
        assert set(names.split(", ")) == set(public.__all__)
        assert all(getattr(public, name).__doc__ for name in public.__all__)


def test_every_test_that_the_security_page_names_is_there():
    page = (ROOT / "SECURITY.md").read_text()

    named = re.findall(r"`([a-z]+/test_\w+\.py)::(test_\w+)`", page)

    assert len(named) > 25
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"
