"""Ownership and modes of the data directory."""

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from flows.cli import main
from flows.cli.group import Sightline
from flows.config.settings import load_settings
from flows.tracking.file_modes import usual_files
from storage.data_directory import (
    SecretUnusable,
    UntrustedDirectory,
    load_or_create_secret,
    make_data_directory,
    require_trusted,
    restrict,
)
from storage.embedded.postgres.server import postgres_url
from storage.embedded.qdrant.process.client import start
from tests.support.builders import a_folder
from tests.support.other_user import (
    STRANGER,
    as_another_user,
    has_another_user,
    open_folder,
    readable_by_another_user,
)

LOOSE = {
    "prefect/prefect.db": b"runs",
    "receipts/delete-1.json": b"{}",
    "pictures/ab/abc": b"png",
    "models/mine/model.safetensors": b"weights",
    ".scratch-1/items.csv": b"rows",
    "backups/1/items.csv": b"rows",
    "qdrant.json": b"key",
    "console.password": b"secret",
}


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that all users may write to, such as /tmp."""
    with open_folder() as folder:
        folder.chmod(0o1777)
        yield folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def loose(home: Path) -> Path:
    """A data directory with the modes of a umask of 022."""
    a_folder(home, LOOSE | {"notes.txt": b"mine"})
    for path in (home, *home.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return home


def test_a_new_one_is_for_its_owner_alone(tmp_path: Path):
    make_data_directory(tmp_path / "some" / "home")

    assert mode(tmp_path / "some" / "home") & ~0o011 == 0o700


def test_for_root_another_account_may_pass_to_it_through_the_folders_made_for_it(tmp_path: Path):
    umask = os.umask(0o077)
    try:
        make_data_directory(tmp_path / "some" / "more" / "home")
    finally:
        os.umask(umask)

    made = [tmp_path / "some", tmp_path / "some" / "more", tmp_path / "some" / "more" / "home"]
    assert {mode(folder) for folder in made} == {0o711 if os.geteuid() == 0 else 0o700}


def test_one_that_others_could_read_is_restricted_by_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home = loose(tmp_path / "home")
    monkeypatch.setenv("SIGHTLINE_HOME", str(home))

    load_settings()

    assert mode(home) & ~0o011 == 0o700
    found = {path: mode(path) for name in LOOSE for path in (home / name, (home / name).parent)}
    del found[home]
    assert {value for path, value in found.items() if path.is_file()} == {0o600}
    assert {value for path, value in found.items() if path.is_dir()} == {0o700}
    assert mode(home / "notes.txt") == 0o644


def test_rights_are_taken_and_never_given(tmp_path: Path):
    home = loose(tmp_path / "home")
    home.chmod(0o500)
    (home / "qdrant.json").chmod(0o400)

    restrict(home)

    assert (mode(home), mode(home / "qdrant.json")) == (0o500, 0o400)
    home.chmod(0o700)


def test_a_link_in_it_leads_to_no_change_elsewhere(tmp_path: Path):
    elsewhere = loose(tmp_path / "elsewhere")
    home = tmp_path / "home"
    home.mkdir()
    (home / "models").symlink_to(elsewhere)
    (home / "receipts").mkdir(mode=0o755)
    (home / "receipts" / "linked").symlink_to(elsewhere / "qdrant.json")

    restrict(home)

    assert (mode(elsewhere), mode(elsewhere / "qdrant.json")) == (0o755, 0o644)


@pytest.mark.parametrize("loosened", [0o777, 0o757, 0o1777])
def test_one_that_others_can_write_to_is_refused_before_anything_in_it_is_used(
    tmp_path: Path, loosened: int, monkeypatch: pytest.MonkeyPatch
):
    home = loose(tmp_path / "home")
    home.chmod(loosened)
    monkeypatch.setenv("SIGHTLINE_HOME", str(home))
    before = sorted(home.rglob("*"))

    for use in (postgres_url, start, make_data_directory, restrict):
        with pytest.raises(UntrustedDirectory, match=f"run: chmod go-w {home}"):
            use(home)
    done = CliRunner().invoke(main, ["status"])

    assert (done.exit_code, len(done.output.splitlines())) == (1, 1)
    assert "others can write to" in done.output
    assert (mode(home), sorted(home.rglob("*"))) == (loosened, before)


def test_a_group_without_other_members_may_have_been_able_to_write_to_it(tmp_path: Path):
    home = loose(tmp_path / "home")
    os.chown(home, -1, os.getegid())
    home.chmod(0o775)

    restrict(home)

    assert mode(home) & ~0o011 == 0o700


@has_another_user
def test_a_group_with_other_members_may_not(tmp_path: Path):
    home = loose(tmp_path / "home")
    os.chown(home, 0, 65534)  # `nogroup`, whose first user is `nobody`
    home.chmod(0o775)

    with pytest.raises(UntrustedDirectory, match="others can write to"):
        restrict(home)


@has_another_user
def test_one_that_another_user_made_first_is_refused_before_anything_in_it_is_used(
    shared: Path, monkeypatch: pytest.MonkeyPatch
):
    home = shared / ".sightline"
    planted = "mkdir -p -m 700 $0/prefect; echo http://127.0.0.1:1/api >$0/prefect/address"
    assert as_another_user("/bin/sh", "-c", planted, home).returncode == 0
    monkeypatch.setenv("SIGHTLINE_HOME", str(home))
    before = sorted(home.rglob("*"))

    for use in (postgres_url, start, make_data_directory, restrict):
        with pytest.raises(UntrustedDirectory, match=f"belongs to user {STRANGER}.*another SIGHTLINE_HOME"):
            use(home)
    done = CliRunner().invoke(main, ["status"])

    assert done.exit_code == 1
    assert f"run as user {STRANGER}" in done.output
    assert sorted(home.rglob("*")) == before


@has_another_user
@pytest.mark.parametrize("leads_to", ["something of ours", "nothing"])
def test_a_link_that_another_user_made_is_refused(shared: Path, tmp_path: Path, leads_to: str):
    target = loose(tmp_path / "ours") if leads_to == "something of ours" else shared / "nothing"
    home = shared / ".sightline"
    assert as_another_user("/bin/ln", "-s", target, home).returncode == 0

    for use in (postgres_url, start, make_data_directory, restrict):
        with pytest.raises(UntrustedDirectory, match=f"is a link of user {STRANGER}"):
            use(home)

    assert not target.exists() or mode(target) == 0o755


@has_another_user
def test_an_ordinary_user_may_use_a_directory_that_root_made():
    with open_folder() as folder:
        os.seteuid(STRANGER)
        try:
            require_trusted(folder)
            restrict(folder)
        finally:
            os.seteuid(0)

        assert mode(folder) == 0o755


@has_another_user
def test_another_user_reads_nothing_in_a_restricted_one():
    with open_folder() as folder:
        home = loose(folder / "home")
        assert len(readable_by_another_user(home)) > len(LOOSE)

        restrict(home)

        assert readable_by_another_user(home) == [str(home / "notes.txt")]


def test_commands_make_files_for_their_owner_alone_unless_the_user_named_the_file(tmp_path: Path):
    @click.command()
    def leave() -> None:
        (tmp_path / "kept").mkdir()
        (tmp_path / "kept" / "rows").touch()
        with usual_files():
            (tmp_path / "page.html").touch()
        (tmp_path / "more").touch()

    group = Sightline("sightline", commands=[leave])
    usual = os.umask(0o022)

    CliRunner().invoke(group, ["leave"], catch_exceptions=False)

    modes = {name: mode(tmp_path / name) for name in ("kept", "kept/rows", "page.html", "more")}
    assert modes == {"kept": 0o700, "kept/rows": 0o600, "page.html": 0o644, "more": 0o600}
    assert os.umask(usual) == 0o022


def test_a_secret_that_many_need_at_once_is_made_once_and_read_whole(tmp_path: Path):
    numbers = iter(range(100))

    with ThreadPoolExecutor(8) as threads:
        found = [
            one.result()
            for one in [
                threads.submit(load_or_create_secret, tmp_path / "key", lambda: f"secret {next(numbers)}")
                for _ in range(40)
            ]
        ]

    assert len(set(found)) == 1
    assert load_or_create_secret(tmp_path / "key", lambda: "another") == found[0]
    assert mode(tmp_path / "key") == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize(("content", "rights"), [("secret", 0o644), ("secret", 0o620), ("\n", 0o600)])
def test_a_secret_that_others_may_know_or_that_is_none_is_not_used(tmp_path: Path, content: str, rights: int):
    path = tmp_path / "key"
    path.write_text(content)
    path.chmod(rights)

    with pytest.raises(SecretUnusable, match="remove it"):
        load_or_create_secret(path, lambda: "new")
