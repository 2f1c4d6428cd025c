"""Restore a backup into empty stores, or check that this is possible."""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from qdrant_client import QdrantClient
from sqlalchemy.orm import sessionmaker

from flows.config.settings import Settings
from flows.maintenance.backup import scratch_folder
from flows.maintenance.backup_files import (
    BadBackup,
    Manifest,
    Proof,
    checked_picture,
    fetch_checked,
    kept_pictures,
    models_in_the_way,
    note_proof,
    picture_list,
    place_models,
    proof_of,
    read_manifest,
)
from flows.resources.comparison import ComparisonReport, reconcile
from flows.resources.connections import Stores, open_blobs, open_database, open_index
from flows.resources.model_loader import models_folder
from flows.tracking.progress import Progress, no_progress, stage_steps
from flows.tracking.retry_policy import HeldLock, hold
from storage import qdrant
from storage.data_directory import PASSAGE
from storage.embedded.postgres.server import stop_postgres
from storage.embedded.qdrant.process.client import stop as stop_index
from storage.files import atomic_write
from storage.postgres import dump, runs
from storage.postgres.dump import NotEmpty
from storage.postgres.locks import exclusive_lock
from storage.qdrant.snapshots import load_points, load_snapshot, make_collection, server_kind

MARKER = "restoring.json"


class Marker(BaseModel, frozen=True):
    """Collections that a restore has begun to fill.

    If it is interrupted, the next restore of the same backup may go on with them.
    """

    backup: str
    """SHA-256 of the backup's manifest."""

    collections: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """Describe a restored backup, and compare the stores."""

    location: str
    manifest: Manifest
    points: dict[str, int]
    """Restored points by collection; fewer than in the backup if its snapshots do not fit."""

    report: ComparisonReport
    proof: Proof | None = None
    """Proof of a backup that was only checked, and is complete."""

    def as_json(self) -> dict[str, Any]:
        return {
            "location": self.location,
            "made": self.manifest.made.isoformat(),
            "points": self.points,
            "points_of_backup": self.manifest.points,
            "reconcile": self.report.as_json(),
            "proved": self.proof.model_dump(mode="json") if self.proof else None,
        }


def restore(settings: Settings, location: str, *, progress: Progress = no_progress) -> RestoreResult:
    """Restore a backup into empty stores, and compare them.

    Everything is checked before anything is written, and the rows are tried on Postgres. Postgres is
    restored last, in one transaction: an interrupted restore can be resumed. Existing data is never replaced.

    Raises:
        BadBackup: there is none, or it is damaged, or holds what no backup of Sightline does.
        NotEmpty: the stores hold data.
        Busy: another process writes.
        DumpFailed: its rows do not fit this Postgres.
        IncompletePoints: Qdrant counts fewer points than were written.
    """
    location, manifest = read_manifest(location)
    with scratch_folder(settings.home) as folder:
        fetch_checked(location, manifest, folder, advance=stage_steps(progress, "check images", 0))
        with (
            open_database(settings) as engine,
            hold(exclusive_lock(engine), for_s=settings.retry_for_s) as lock,
            open_index(settings) as vectors,
        ):
            stores = Stores(engine, sessionmaker(engine), vectors, open_blobs(settings))
            ours = _begun(settings, manifest)
            _require_empty(stores, settings, manifest, folder, ours)
            dump.restore(engine, folder, manifest.postgres, rehearse=True)
            if stores.blobs is not None and manifest.pictures == "copy":
                kept = kept_pictures(location)
                for sha256 in picture_list(location, folder):
                    stores.blobs.put(sha256, checked_picture(location, kept, sha256))
            place_models(models_folder(settings), manifest.models, folder)
            _begin(settings, manifest)
            points = _fill_index(vectors, manifest, folder, lock)
            if manifest.active in points:
                qdrant.activate(vectors, manifest.active)
            dump.restore(engine, folder, manifest.postgres)
            with stores.sessions.begin() as session:
                runs.close_all(session)
            _marker_of(settings).unlink(missing_ok=True)
            return RestoreResult(location, manifest, points, reconcile(stores))


def check(settings: Settings, location: str, *, progress: Progress = no_progress) -> RestoreResult:
    """Restore a backup into temporary embedded stores, and compare them.

    The stores of `settings` stay as they are. The proof is kept beside the backup, so that the next backup
    can report it.

    Raises:
        BadBackup, DumpFailed, IncompletePoints: as `restore`.
    """
    with scratch_folder(settings.home) as folder:
        folder.chmod(0o700 | PASSAGE)
        home = folder / "home"
        try:
            location, manifest = read_manifest(location)
            changes: dict[str, Any] = {"home": home, "keep_pictures": True}
            if manifest.pictures == "reference":
                there = settings.pictures_url or str(settings.home.absolute() / "pictures")
                changes = {"home": home, "pictures_url": there}
            restored = restore(settings.embedded().model_copy(update=changes), location, progress=progress)
        finally:
            stop_postgres(home)
            stop_index(home)
    lost = restored.report.counts["missing_picture"]
    whole = restored.report.damage == lost == manifest.lost_pictures and restored.points == manifest.points
    if not whole:
        return restored
    proof = proof_of(location, restored.report.items, sum(restored.points.values()))
    note_proof(location, proof)
    return RestoreResult(location, manifest, restored.points, restored.report, proof)


def _require_empty(
    stores: Stores, settings: Settings, manifest: Manifest, folder: Path, ours: set[str]
) -> None:
    """Check that a restore would replace nothing.

    Args:
        ours: collections that an interrupted restore of the same backup has begun to fill.
    """
    dump.require_empty(stores.engine)
    there = [name for name in qdrant.list_collections(stores.vectors) if name not in ours]
    if filled := [name for name in there if qdrant.count(stores.vectors, name)]:
        raise NotEmpty(f"Qdrant holds {', '.join(filled)} already; restore into an empty one")
    if others := models_in_the_way(models_folder(settings), manifest.models, folder):
        raise NotEmpty(
            f"{models_folder(settings) / others[0]} is there already and holds another model; move it away, "
            "or restore into another SIGHTLINE_HOME"
        )
    for name in there:  # created for a model, never used
        stores.vectors.delete_collection(name)


def _fill_index(vectors: QdrantClient, manifest: Manifest, folder: Path, lock: HeldLock) -> dict[str, int]:
    """Fill each collection; return its number of points by name.

    Collections whose snapshots are of another kind of server are left out.
    """
    points = {}
    for one in manifest.collections:
        make_collection(vectors, one.name, one.shape)
        path = folder / one.file
        points[one.name] = lock.persist(partial(load_points, vectors, one.name, path))
    if manifest.snapshots and manifest.index == server_kind(vectors):
        for snapshot in manifest.snapshots:
            path = folder / snapshot.file
            lock.persist(partial(load_snapshot, vectors, snapshot.collection, path))
            points[snapshot.collection] = qdrant.count(vectors, snapshot.collection)
    return points


def _begun(settings: Settings, manifest: Manifest) -> set[str]:
    """Return the collections that an interrupted restore of this backup began."""
    try:
        marker = Marker.model_validate_json(_marker_of(settings).read_bytes())
    except FileNotFoundError:
        return set()
    except ValidationError as error:
        raise BadBackup(f"{_marker_of(settings)} cannot be read; move it away") from error
    return set(marker.collections) if marker.backup == _digest(manifest) else set()


def _begin(settings: Settings, manifest: Manifest) -> None:
    marker = Marker(backup=_digest(manifest), collections=tuple(manifest.points))
    atomic_write(_marker_of(settings), marker.model_dump_json().encode())


def _marker_of(settings: Settings) -> Path:
    return settings.home / MARKER


def _digest(manifest: Manifest) -> str:
    return hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()
