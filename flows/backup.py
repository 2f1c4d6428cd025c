"""Backups: Postgres, the index and the pictures in one place, with checksums; and back."""

import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal
from uuid import UUID, uuid4

from fsspec.core import url_to_fs
from pydantic import BaseModel, ValidationError

from flows.deps import Stores
from flows.ledger import Account, recorded
from flows.retries import Held, held
from storage import catalog, dump, index, registry
from storage.blobs import Blobs, copy_new
from storage.dump import Dump
from storage.locks import lone_lock

MANIFEST = "manifest.json"
MANIFEST_SUM = "manifest.sha256"
PICTURES = "pictures"
PICTURE_LIST = "pictures.txt"
SCRATCH = ".scratch-"
FORMAT = 1
Mode = Literal["copy", "reference"]
Advance = Callable[[int], None]


class BadBackup(ValueError):
    """There is no whole backup there; nothing was restored."""


class File(BaseModel, frozen=True):
    """One file of a backup."""

    name: str
    bytes: int
    sha256: str


class Snapshot(BaseModel, frozen=True):
    """One collection of a backup."""

    collection: str
    file: str
    points: int


class Manifest(BaseModel, frozen=True):
    """What a backup holds; written last, so that whatever has one is complete."""

    format: Literal[1]
    made: datetime
    postgres: Dump
    index: str
    """What kind of server the snapshots fit."""

    snapshots: tuple[Snapshot, ...]
    active: str | None
    """The collection that searches go to."""

    pictures: Mode
    items: int
    lost_pictures: int
    """Pictures that were gone before the backup was made."""

    models: tuple[str, ...] = ()
    """Fine-tuned ones that collections need, each in a file of its own."""

    files: tuple[File, ...]


@dataclass(frozen=True, slots=True)
class Made:
    """A backup that was made."""

    location: str
    manifest: Manifest

    def as_json(self) -> dict[str, Any]:
        return {"location": self.location} | self.manifest.model_dump(mode="json")


def backup(
    stores: Stores,
    target: str,
    scratch: Path,
    *,
    models: Path | None = None,
    pictures: Mode = "copy",
    for_s: float = 0,
    prefect_run_id: UUID | None = None,
    advance: Advance = lambda _: None,
) -> Made:
    """Write a backup into a new folder below `target`; no earlier one is changed.

    Pictures are kept once below `target`, whichever backups need them. They are copied before everything
    else, beside running ingests; only the rest, which takes less long, needs that nobody writes.

    Args:
        target: a folder, or an fsspec URL.
        scratch: a local folder with room for the dump and the largest snapshot.
        models: the folder of fine-tuned models; those that collections need are taken along.
        pictures: `reference` leaves them where they are.
        for_s: how long a store that does not answer is asked again.
        advance: told how many pictures have been copied.

    Raises:
        Busy: another process writes.
        DumpFailed: Postgres' own tool failed.
    """
    if pictures == "copy":
        _copy_pictures(stores, target, advance)
    account = Account()
    with (
        held(lone_lock(stores.engine), for_s=for_s) as lock,
        recorded(stores.sessions, lock, "backup", account=lambda: account, prefect_run_id=prefect_run_id),
    ):
        now = datetime.now(UTC)
        name = f"{now:%Y-%m-%dT%H-%M-%SZ}-{uuid4().hex[:4]}"
        if pictures == "copy":
            _copy_pictures(stores, target, advance)
        with scratch_folder(scratch) as folder:
            manifest = _write(stores, folder, now, models, pictures, lock)
            files, root = url_to_fs(target)
            files.makedirs(f"{root}/{name}", exist_ok=False)
            for one in manifest.files:
                files.put_file(str(folder / one.name), f"{root}/{name}/{one.name}")
            content = manifest.model_dump_json(indent=2).encode()
            files.pipe_file(f"{root}/{name}/{MANIFEST_SUM}", hashlib.sha256(content).hexdigest().encode())
            files.pipe_file(f"{root}/{name}/{MANIFEST}", content)
        size = sum(one.bytes for one in manifest.files)
        account.counts = {"items": manifest.items, "lost_pictures": manifest.lost_pictures, "bytes": size}
    return Made(f"{target.rstrip('/')}/{name}", manifest)


def read_manifest(location: str) -> tuple[str, Manifest]:
    """Return where the backup at `location` is, and what it holds: itself, or the latest below it.

    Raises:
        BadBackup: there is none, or its manifest cannot be read.
    """
    files, root = url_to_fs(location)
    if not files.exists(f"{root}/{MANIFEST}"):
        below = sorted(files.glob(f"{root}/*/{MANIFEST}"))
        if not below:
            raise BadBackup(f"{location}: there is no complete backup, as none has a {MANIFEST}")
        name = below[-1].rsplit("/", 2)[-2]
        location, root = f"{location.rstrip('/')}/{name}", f"{root}/{name}"
    content = files.cat_file(f"{root}/{MANIFEST}")
    digest = hashlib.sha256(content).hexdigest().encode()
    if not files.exists(f"{root}/{MANIFEST_SUM}") or files.cat_file(f"{root}/{MANIFEST_SUM}") != digest:
        raise BadBackup(f"{location}: its {MANIFEST} is damaged; use another backup")
    try:
        return location, Manifest.model_validate_json(content)
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise BadBackup(f"{location}: its {MANIFEST} is of another release of Sightline ({why})") from error


def fetch_checked(location: str, manifest: Manifest, folder: Path, *, advance: Advance) -> None:
    """Copy the files of a backup into `folder`, and check them and the pictures against their checksums.

    Raises:
        BadBackup: a file is missing or damaged, or a picture is.
    """
    files, root = url_to_fs(location)
    for one in manifest.files:
        path = folder / one.name
        try:
            files.get_file(f"{root}/{one.name}", str(path))
        except FileNotFoundError as error:
            raise BadBackup(f"{location}: {one.name} is missing; use another backup") from error
        if _described(path) != one:
            raise BadBackup(f"{location}: {one.name} is damaged; use another backup")
    if manifest.pictures == "copy":
        kept = kept_pictures(location)
        for sha256 in picture_list(folder):
            try:
                found = hashlib.sha256(kept.get(sha256)).hexdigest()
            except FileNotFoundError as error:
                raise BadBackup(f"{location}: picture {sha256} is missing; use another backup") from error
            if found != sha256:
                raise BadBackup(f"{location}: picture {sha256} is damaged; use another backup")
            advance(1)


def kept_pictures(location: str) -> Blobs:
    """Return the pictures beside the backup at `location`."""
    return Blobs(f"{location.rstrip('/').rsplit('/', 1)[0]}/{PICTURES}")


def picture_list(folder: Path) -> Iterator[str]:
    """Yield the SHA-256 of each picture that the backup fetched into `folder` needs."""
    with (folder / PICTURE_LIST).open() as file:
        yield from (line.strip() for line in file)


def _write(
    stores: Stores, folder: Path, now: datetime, models: Path | None, pictures: Mode, lock: Held
) -> Manifest:
    made = dump.dump(stores.engine, folder)
    lost = 0
    with stores.sessions() as session, (folder / PICTURE_LIST).open("w") as file:
        items = catalog.counts(session)["items"]
        known = registry.known_collections(session)
        active = registry.active_collection(session)
        needed = registry.models_of_collections(session)
        for prefix, shas in groupby(catalog.living_pictures(session), key=lambda sha256: sha256[:2]):
            there = None if stores.blobs is None else stores.blobs.names(prefix)
            for sha256 in shas:
                if there is None or sha256 in there:
                    file.write(f"{sha256}\n")
                else:
                    lost += 1
    snapshots = []
    for one in known:
        if not stores.vectors.collection_exists(one.name):
            continue
        file_name = f"{one.name}.snapshot"
        lock.persist(partial(index.save_snapshot, stores.vectors, one.name, folder / file_name))
        points = stores.vectors.count(one.name, exact=True).count
        snapshots.append(Snapshot(collection=one.name, file=file_name, points=points))
    packed = [] if models is None else pack_models(models, needed, folder)
    names = [*made.files, PICTURE_LIST, *(one.file for one in snapshots), *map(model_file, packed)]
    return Manifest(
        format=FORMAT,
        made=now,
        postgres=made,
        index=index.server_kind(stores.vectors),
        snapshots=tuple(snapshots),
        active=active,
        pictures=pictures if stores.blobs is not None else "reference",
        items=items,
        lost_pictures=lost,
        models=tuple(packed),
        files=tuple(_described(folder / name) for name in names),
    )


def _copy_pictures(stores: Stores, target: str, advance: Advance) -> None:
    """Copy the pictures that are not below `target` yet."""
    if stores.blobs is None:
        return
    for _ in copy_new(stores.blobs, Blobs(f"{target.rstrip('/')}/{PICTURES}")):
        advance(1)  # what is missing in the end, the manifest counts


def pack_models(models: Path, names: Sequence[str], folder: Path) -> list[str]:
    """Write those of the models that have a folder below `models` to files in `folder`; return which."""
    own = [name for name in names if name == Path(name).name and (models / name).is_dir()]
    for name in own:
        with tarfile.open(folder / model_file(name), "w") as file:
            file.add(models / name, arcname=name)
    return own


def unpack_models(models: Path, names: Sequence[str], folder: Path) -> None:
    """Bring back what `pack_models` has written to `folder`, each model whole or not at all."""
    for name in names:
        unfinished = models / f".{name}.part"
        shutil.rmtree(unfinished, ignore_errors=True)
        with tarfile.open(folder / model_file(name)) as file:
            file.extractall(unfinished, filter="data")
        shutil.rmtree(models / name, ignore_errors=True)
        os.replace(unfinished / name, models / name)
        unfinished.rmdir()


def model_file(name: str) -> str:
    """Return what the file of a model is called."""
    return f"{name}.model.tar"


@contextmanager
def scratch_folder(scratch: Path) -> Iterator[Path]:
    """Yield a new folder below `scratch`, gone afterwards."""
    scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=scratch))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def left_scratch(scratch: Path) -> list[Path]:
    """Return the folders that `scratch_folder` has made and that are still there; nobody may be in one."""
    return sorted(scratch.glob(f"{SCRATCH}*"))


def _described(path: Path) -> File:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return File(name=path.name, bytes=path.stat().st_size, sha256=digest)
