"""Back up Postgres, points, models and images, with checksums."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from fsspec.core import url_to_fs

from flows.maintenance.backup_files import (
    FORMAT,
    MANIFEST,
    MANIFEST_SUM,
    PICTURE_LIST,
    PICTURES,
    Manifest,
    Mode,
    Proof,
    SavedCollection,
    described,
    last_proof,
    model_file,
    pack_models,
)
from flows.resources.connections import Stores
from flows.tracking.progress import Progress, no_progress, stage_steps
from flows.tracking.retry_policy import HeldLock, persist
from flows.tracking.run_log import tracked_run
from storage.blobs import Blobs, copy_new, prefix_of
from storage.data_directory import SCRATCH, make_data_directory
from storage.postgres import catalog, dump, model_registry
from storage.postgres.locks import exclusive_lock
from storage.qdrant.snapshots import save_points, shape_of


@dataclass(frozen=True, slots=True)
class BackupResult:
    """Describe a new backup."""

    location: str
    manifest: Manifest
    proved: Proof | None
    """Last proof of restorability of a backup in the same place; None without one."""

    def as_json(self) -> dict[str, Any]:
        proved = self.proved.model_dump(mode="json") if self.proved else None
        return {"location": self.location, "proved": proved} | self.manifest.model_dump(
            mode="json", exclude={"index": True, "snapshots": True, "collections": {"__all__": {"shape"}}}
        )


def backup(
    stores: Stores,
    target: str,
    scratch: Path,
    *,
    models: Path | None = None,
    pictures: Mode = "copy",
    for_s: float = 0,
    prefect_run_id: UUID | None = None,
    progress: Progress = no_progress,
) -> BackupResult:
    """Write a backup into a new folder below `target`.

    Earlier backups stay as they are. Images are stored once below `target` for all backups. They are copied
    first, beside running ingests; only the rest, which takes less time, needs the exclusive lock.

    Args:
        target: a folder, or an fsspec URL.
        scratch: a local folder with room for the tables and the points.
        models: the folder of fine-tuned models; those that collections need are included.
        pictures: `reference` leaves the images where they are.
        for_s: how long work is retried while a store does not answer.
        progress: receives how many images have been copied.

    Raises:
        Busy: another process writes.
        IncompletePoints: a collection returned fewer points than it counts, as one node of a cluster may.
    """
    if pictures == "copy":
        persist(partial(_copy_pictures, stores, target, progress), for_s=for_s)
    with tracked_run(
        stores.sessions,
        exclusive_lock(stores.engine),
        "backup",
        for_s=for_s,
        prefect_run_id=prefect_run_id,
        progress=progress,
    ) as run:
        now = datetime.now(UTC)
        name = f"{now:%Y-%m-%dT%H-%M-%SZ}-{uuid4().hex[:4]}"
        if pictures == "copy":
            run.persist(partial(_copy_pictures, stores, target, run.progress))
        with scratch_folder(scratch) as folder:
            manifest = _write(stores, folder, now, models, pictures, run.lock)
            files, root = url_to_fs(target)
            files.makedirs(f"{root}/{name}", exist_ok=False)
            for one in manifest.files:
                run.persist(partial(files.put_file, str(folder / one.name), f"{root}/{name}/{one.name}"))
            content = manifest.model_dump_json(indent=2).encode()
            total = hashlib.sha256(content).hexdigest().encode()
            run.persist(partial(files.pipe_file, f"{root}/{name}/{MANIFEST_SUM}", total))
            run.persist(partial(files.pipe_file, f"{root}/{name}/{MANIFEST}", content))
        proved = last_proof(target)
        run.counts = {
            "items": manifest.items,
            "points": sum(manifest.points.values()),
            "lost_pictures": manifest.lost_pictures,
            "bytes": sum(one.bytes for one in manifest.files),
            "proved": None if proved is None else proved.at.isoformat(),
        }
    return BackupResult(f"{target.rstrip('/')}/{name}", manifest, proved)


def _write(
    stores: Stores, folder: Path, now: datetime, models: Path | None, pictures: Mode, lock: HeldLock
) -> Manifest:
    made = dump.dump(stores.engine, folder)
    lost = 0
    with stores.sessions() as session, (folder / PICTURE_LIST).open("w") as file:
        items = catalog.counts(session)["items"]
        known = model_registry.known_collections(session)
        active = model_registry.active_collection(session)
        needed = model_registry.models_of_collections(session)
        for prefix, shas in groupby(catalog.living_images(session), key=prefix_of):
            there = None if stores.blobs is None else stores.blobs.names(prefix)
            for sha256 in shas:
                if there is None or sha256 in there:
                    file.write(f"{sha256}\n")
                else:
                    lost += 1
    tried = (lock.persist(partial(_save_collection, stores, one.name, folder)) for one in known)
    saved = [one for one in tried if one is not None]
    packed = [] if models is None else pack_models(models, needed, folder)
    names = [*made.files, PICTURE_LIST, *(one.file for one in saved), *map(model_file, packed)]
    return Manifest(
        format=FORMAT,
        made=now,
        postgres=made,
        collections=tuple(saved),
        active=active if active in {one.name for one in saved} else None,
        pictures=pictures if stores.blobs is not None else "reference",
        items=items,
        lost_pictures=lost,
        models=tuple(packed),
        files=tuple(described(folder / name) for name in names),
    )


def _save_collection(stores: Stores, name: str, folder: Path) -> SavedCollection | None:
    """Save the points of a collection, or return None without one."""
    if not stores.vectors.collection_exists(name):
        return None
    file = f"{name}.parquet"
    points = save_points(stores.vectors, name, folder / file)
    return SavedCollection(name=name, file=file, points=points, shape=shape_of(stores.vectors, name))


def _copy_pictures(stores: Stores, target: str, progress: Progress) -> None:
    """Copy the images that the target lacks."""
    if stores.blobs is None:
        return
    advance = stage_steps(progress, "copy images", 0)
    for _ in copy_new(stores.blobs, Blobs(f"{target.rstrip('/')}/{PICTURES}")):
        advance(1)  # the manifest counts those that are still missing


@contextmanager
def scratch_folder(scratch: Path) -> Iterator[Path]:
    """Yield a temporary folder below `scratch`, a data directory."""
    make_data_directory(scratch)
    folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=scratch))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def left_scratch(scratch: Path) -> list[Path]:
    """Return leftover folders of `scratch_folder`; none may be in use."""
    return sorted(scratch.glob(f"{SCRATCH}*"))
