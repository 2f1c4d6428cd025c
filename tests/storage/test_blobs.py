import hashlib
from pathlib import Path
from uuid import uuid4

import pytest

from storage.blobs import Blobs

DATA = b"picture bytes"
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(params=["folder", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    """A folder, and a store that fsspec reaches by URL."""
    return Blobs(str(tmp_path / "a folder") if request.param == "folder" else f"memory://{uuid4()}")


def test_what_was_put_comes_back(blobs: Blobs):
    blobs.put(SHA256, DATA)

    assert blobs.get(SHA256) == DATA


def test_putting_twice_is_the_same_as_once(blobs: Blobs):
    blobs.put(SHA256, DATA)
    blobs.put(SHA256, DATA)

    assert blobs.get(SHA256) == DATA


def test_what_was_deleted_is_gone_and_deleting_it_again_is_no_error(blobs: Blobs):
    blobs.put(SHA256, DATA)

    blobs.delete(SHA256)
    blobs.delete(SHA256)

    with pytest.raises(FileNotFoundError):
        blobs.get(SHA256)


def test_a_folder_holds_whole_blobs_only(tmp_path: Path):
    Blobs(str(tmp_path)).put(SHA256, DATA)

    [file] = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert file.name == SHA256
