"""A purge removes what nobody needs, and nothing else."""

import hashlib
from pathlib import Path

import pytest

from flows.config.settings import Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.maintenance.backup import backup, scratch_folder
from flows.maintenance.backup_files import read_manifest
from flows.maintenance.purge import PurgeResult, TooManyOrphans, purge
from flows.resources.connections import Deps
from storage.postgres import catalog
from tests.support.builders import a_folder, png

ORPHAN = "0" * 64


def kept(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


@pytest.fixture
def blobs(deps: Deps, settings: Settings, tmp_path: Path) -> Path:
    """Two pictures that are needed, one that is not, and a file that a crash left."""
    files = {"red.png": png("red"), "blue.png": png("blue")}
    ingest_source(deps, settings, Request(a_folder(tmp_path / "shop", files)))
    deps.blobs.put(ORPHAN, b"not needed")
    a_folder(tmp_path / "blobs", {"00/00/.half.part": b"half"})
    return tmp_path / "blobs"


def test_what_no_item_needs_goes_and_the_rest_stays(deps: Deps, settings: Settings, blobs: Path):
    assert purge(deps, settings, max_delete=0.5, yes=False, dry_run=True) == PurgeResult(3, 1, 1, ())
    assert kept(blobs) == 4

    purge(deps, settings, max_delete=0.5, yes=False, dry_run=False)

    assert kept(blobs) == 2
    assert purge(deps, settings, max_delete=0, yes=False, dry_run=False) == PurgeResult(2, 0, 0, ())


@pytest.mark.usefixtures("blobs")
def test_more_images_than_a_statement_has_parameters_are_looked_up(deps: Deps):
    needed = hashlib.sha256(png("red")).hexdigest()
    many = [f"{number:064x}" for number in range(70_000)]

    with deps.sessions() as session:
        assert catalog.referenced_images(session, [*many, needed]) == {needed}


def test_a_purge_of_most_pictures_is_refused(deps: Deps, settings: Settings, blobs: Path):
    with pytest.raises(TooManyOrphans, match="1 of 3 images"):
        purge(deps, settings, max_delete=0.05, yes=False, dry_run=False)

    assert kept(blobs) == 4
    purge(deps, settings, max_delete=0.05, yes=True, dry_run=False)
    assert kept(blobs) == 2


def test_the_scratch_folder_of_a_backup_that_died_goes_and_a_backup_stays(deps: Deps, settings: Settings):
    with scratch_folder(settings.home) as scratch:
        name = scratch.name
    died = a_folder(settings.home / name, {"postgres.dump": b"half"})
    backup(deps, str(settings.home / "backups"), settings.home)

    assert purge(deps, settings, max_delete=0, yes=False, dry_run=True) == PurgeResult(0, 0, 1, ())
    purge(deps, settings, max_delete=0, yes=False, dry_run=False)

    assert not died.exists()
    assert read_manifest(str(settings.home / "backups"))
