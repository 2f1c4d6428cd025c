"""Restoring a backup into an empty home."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import sessionmaker

from flows.backup import (
    Advance,
    Manifest,
    fetch_checked,
    kept_pictures,
    picture_list,
    read_manifest,
    scratch_folder,
    unpack_models,
)
from flows.deps import Stores, open_blobs, open_database, open_index
from flows.models import models_folder
from flows.reconcile import Report, reconcile
from flows.retries import held
from flows.settings import Settings
from storage import dump, index, runs
from storage.dump import NotEmpty
from storage.locks import lone_lock


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored, and how the stores compare now."""

    location: str
    manifest: Manifest
    has_vectors: bool
    """False where the snapshots are of another kind of server: `reconcile --repair` embeds everything."""

    report: Report

    def as_json(self) -> dict[str, Any]:
        return {
            "location": self.location,
            "made": self.manifest.made.isoformat(),
            "has_vectors": self.has_vectors,
            "reconcile": self.report.as_json(),
        }


def restore(settings: Settings, location: str, *, advance: Advance = lambda _: None) -> Restored:
    """Fill the empty stores that `settings` name from a backup, and compare them.

    Everything is checked before anything is written. Postgres comes last and as a whole: a restore that was
    interrupted can be run again.

    Raises:
        BadBackup: there is none, or it is damaged.
        NotEmpty: there is something in the stores.
        Busy: another process writes.
        DumpFailed: Postgres' own tool failed.
    """
    location, manifest = read_manifest(location)
    with scratch_folder(settings.home) as folder:
        fetch_checked(location, manifest, folder, advance=advance)
        with (
            open_database(settings) as engine,
            held(lone_lock(engine), for_s=settings.retry_for_s),
            open_index(settings) as vectors,
        ):
            stores = Stores(engine, sessionmaker(engine), vectors, open_blobs(settings))
            _require_empty(stores, manifest)
            if stores.blobs is not None and manifest.pictures == "copy":
                kept = kept_pictures(location)
                for sha256 in picture_list(folder):
                    stores.blobs.put(sha256, kept.get(sha256))
            unpack_models(models_folder(settings), manifest.models, folder)
            has_vectors = manifest.index == index.server_kind(vectors)
            if has_vectors:
                for one in manifest.snapshots:
                    index.load_snapshot(vectors, one.collection, folder / one.file)
            if manifest.active is not None and vectors.collection_exists(manifest.active):
                index.activate(vectors, manifest.active)
            dump.restore(engine, folder, manifest.postgres)
            with stores.sessions.begin() as session:
                runs.close_all(session)
            return Restored(location, manifest, has_vectors, reconcile(stores))


def _require_empty(stores: Stores, manifest: Manifest) -> None:
    dump.require_empty(stores.engine)
    ours = {one.collection for one in manifest.snapshots}
    if foreign := set(index.collections(stores.vectors)) - ours:
        raise NotEmpty(f"Qdrant holds {', '.join(sorted(foreign))} already; restore into an empty one")
