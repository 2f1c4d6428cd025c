import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from embedding import files as embedding_files
from storage import files

both = pytest.mark.parametrize("atomic_write", [files.atomic_write, embedding_files.atomic_write])
Write = Callable[[Path, bytes], None]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def kind(descriptor: int) -> str:
    return "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The syncs and renames, in order."""
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        calls.append(f"sync {kind(descriptor)}")
        fsync(descriptor)

    def note_replace(source: str, target: str) -> None:
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    return calls


@both
def test_a_file_is_replaced_whole_and_is_its_owners_alone(atomic_write: Write, tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"a longer one than before")
    path.chmod(0o644)

    atomic_write(path, b"new")

    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o600)
    assert names(tmp_path) == ["file"]


@both
def test_the_content_is_synced_before_the_rename_and_the_folder_after_it(
    atomic_write: Write, tmp_path: Path, calls: list[str]
):
    atomic_write(tmp_path / "file", b"new")

    assert calls == ["sync file", "rename", "sync folder"]


@both
def test_a_write_that_fails_leaves_the_file_as_it_was_and_nothing_beside_it(
    atomic_write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, b"new")

    assert (path.read_bytes(), names(tmp_path)) == (b"old", ["file"])


def test_a_file_that_exists_is_kept_where_it_is_not_to_be_replaced(tmp_path: Path):
    path = tmp_path / "file"

    files.atomic_write(path, b"first", replace=False)
    files.atomic_write(path, b"second", replace=False)

    assert (path.read_bytes(), names(tmp_path)) == (b"first", ["file"])


def test_of_many_writers_at_once_one_wins_and_no_reader_sees_a_part(tmp_path: Path):
    path = tmp_path / "file"
    contents = [bytes([number]) * 100_000 for number in range(20)]

    with ThreadPoolExecutor(8) as threads:
        done = [threads.submit(files.atomic_write, path, content) for content in contents]
        seen = [path.read_bytes() for one in done if one.result() is None]

    assert set(seen) <= set(contents)
    assert names(tmp_path) == ["file"]


def test_a_file_that_a_killed_process_left_is_found(tmp_path: Path):
    files.atomic_write(tmp_path / "file", b"whole")
    left = tmp_path / f".file.abc{files.PART}"
    left.write_bytes(b"ha")

    assert files.unfinished_files(tmp_path) == [left]


def test_a_folder_is_synced_with_its_files_before_it_is_renamed(tmp_path: Path, calls: list[str]):
    (tmp_path / "new" / "deeper").mkdir(parents=True)
    (tmp_path / "new" / "deeper" / "weights").write_bytes(b"weights")

    files.durable_rename(tmp_path / "new", tmp_path / "model")

    assert (tmp_path / "model" / "deeper" / "weights").read_bytes() == b"weights"
    assert calls == ["sync folder", "sync file", "sync folder", "rename", "sync folder"]


def test_a_file_system_that_cannot_sync_folders_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fsync = os.fsync

    def only_files(descriptor: int) -> None:
        if kind(descriptor) == "folder":
            raise OSError(22, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    files.atomic_write(tmp_path / "file", b"new")

    assert (tmp_path / "file").read_bytes() == b"new"
