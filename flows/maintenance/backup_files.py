"""Read and check the files of a backup."""

import filecmp
import hashlib
import re
import tarfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from pydantic import BaseModel, NonNegativeInt, StringConstraints, ValidationError, model_validator

from flows.tracking.progress import Steps
from storage.blobs import Blobs
from storage.errors import InvalidInput, SightlineError
from storage.files import durable_rename
from storage.postgres.dump import Dump
from storage.qdrant.snapshots import BadPointFile, Shape, check_points

MANIFEST = "manifest.json"
MANIFEST_SUM = "manifest.sha256"
PROOF = "proved.json"
PICTURES = "pictures"
PICTURE_LIST = "pictures.txt"
FORMAT = 2
BLOCK_BYTES = 1 << 20
MODELS = "models"

Mode = Literal["copy", "reference"]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]
"""One plain component of a path: nothing that leads elsewhere, and nothing hidden."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
PICTURE = re.compile(r"[0-9a-f]{64}")


class BadBackup(InvalidInput):
    """The backup is absent, incomplete or damaged; nothing was restored."""


class File(BaseModel, frozen=True):
    """One file of a backup."""

    name: Name
    bytes: NonNegativeInt
    sha256: Sha256


class SavedCollection(BaseModel, frozen=True):
    """One collection of a backup, with the file that holds its points."""

    name: Name
    file: Name
    points: NonNegativeInt
    shape: Shape


class Snapshot(BaseModel, frozen=True):
    """One collection of a format 1 backup.

    Its snapshot can be restored only by the kind of server that made it.
    """

    collection: Name
    file: Name
    points: NonNegativeInt


class Manifest(BaseModel, frozen=True):
    """List the contents of a backup; written last."""

    format: Literal[1, 2]
    made: datetime
    postgres: Dump
    collections: tuple[SavedCollection, ...] = ()
    active: Name | None
    """The active collection."""

    pictures: Mode
    items: NonNegativeInt
    lost_pictures: NonNegativeInt
    """Images that were lost before the backup."""

    models: tuple[Name, ...] = ()
    """Fine-tuned models that collections need, one file each."""

    files: tuple[File, ...]
    index: str = ""
    """In format 1, the kind of server that the snapshots fit."""

    snapshots: tuple[Snapshot, ...] = ()
    """In format 1, the collections."""

    @property
    def points(self) -> dict[str, int]:
        """Return the number of points by collection."""
        new = {one.name: one.points for one in self.collections}
        return new | {one.collection: one.points for one in self.snapshots}

    @model_validator(mode="after")
    def _each_file_is_listed_once(self) -> Self:
        listed = [one.name for one in self.files]
        needed = [*self.postgres.files, PICTURE_LIST, *map(model_file, self.models)]
        needed += [one.file for one in self.collections]
        needed += [one.file for one in self.snapshots]
        if len(set(listed)) < len(listed) or len(set(needed)) < len(needed):
            raise ValueError("it names a file twice")
        if set(needed) != set(listed):
            raise ValueError("its list of files is not that of its parts")
        if self.active is not None and self.active not in self.points:
            raise ValueError("searches go to a collection that it does not hold")
        return self


class Proof(BaseModel, frozen=True):
    """Proof that a backup was restored and compared; kept beside its manifest."""

    backup: str
    at: datetime
    items: int
    points: int


def read_manifest(location: str) -> tuple[str, Manifest]:
    """Return the location and manifest of a backup.

    Args:
        location: a backup, or the folder of several: then the latest.

    Raises:
        BadBackup: there is none, or its manifest cannot be read or names what no backup of ours has.
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
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        why = f"{where}: {first['msg']}".removeprefix(": ")
        raise BadBackup(
            f"{location}: its {MANIFEST} is of another release of Sightline, or damaged ({why}); use the "
            "release that made it, or another backup"
        ) from error


def fetch_checked(location: str, manifest: Manifest, folder: Path, *, advance: Steps) -> None:
    """Copy the files of a backup into `folder` and check their contents.

    Images are checked as well, but not copied.

    Raises:
        BadBackup: a file is missing or damaged, or an image is, or a file holds something else.
    """
    files, root = url_to_fs(location)
    for one in manifest.files:
        try:
            _fetch(files, f"{root}/{one.name}", folder / one.name, one)
        except FileNotFoundError as error:
            raise BadBackup(f"{location}: {one.name} is missing; use another backup") from error
        except _Damaged as error:
            raise BadBackup(f"{location}: {one.name} is damaged; use another backup") from error
    try:
        for saved in manifest.collections:
            check_points(folder / saved.file, saved.name, saved.shape, saved.points)
    except BadPointFile as error:
        raise BadBackup(f"{location}: {error}; use another backup") from error
    for name in manifest.models:
        _unpack_model(location, name, folder)
    if manifest.pictures == "copy":
        kept = kept_pictures(location)
        for sha256 in picture_list(location, folder):
            checked_picture(location, kept, sha256)
            advance(1)


def kept_pictures(location: str) -> Blobs:
    """Return the images beside the backup at `location`."""
    return Blobs(f"{location.rstrip('/').rsplit('/', 1)[0]}/{PICTURES}")


def picture_list(location: str, folder: Path) -> Iterator[str]:
    """Yield the SHA-256 of each image that a fetched backup needs."""
    with (folder / PICTURE_LIST).open("rb") as file:
        for line in file:
            name = line.decode("ascii", "replace").removesuffix("\n")
            if not PICTURE.fullmatch(name):
                raise BadBackup(f"{location}: {PICTURE_LIST} names no image by {name[:100]!r}")
            yield name


def checked_picture(location: str, kept: Blobs, sha256: str) -> bytes:
    """Return the bytes of an image of the backup at `location`.

    Raises:
        BadBackup: it is missing or damaged.
    """
    try:
        data = kept.get(sha256)
    except FileNotFoundError as error:
        raise BadBackup(f"{location}: image {sha256} is missing; use another backup") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BadBackup(f"{location}: image {sha256} is damaged; use another backup")
    return data


def pack_models(models: Path, names: Sequence[str], folder: Path) -> list[str]:
    """Write fine-tuned models to tar files in `folder`; return their names.

    Names without a folder below `models` are left out.
    """
    own = [name for name in names if name == Path(name).name and (models / name).is_dir()]
    for name in own:
        with tarfile.open(folder / model_file(name), "w") as file:
            file.add(models / name, arcname=name)
    return own


def models_in_the_way(models: Path, names: Sequence[str], folder: Path) -> list[str]:
    """Return the unpacked models that exist already with other contents."""
    return [
        name
        for name in names
        if (models / name).exists() and not _is_same_tree(folder / MODELS / name, models / name)
    ]


def place_models(models: Path, names: Sequence[str], folder: Path) -> None:
    """Move unpacked models below `models`, each whole or not at all."""
    for name in names:
        if not (models / name).exists():
            models.mkdir(parents=True, exist_ok=True)
            durable_rename(folder / MODELS / name, models / name)


def model_file(name: str) -> str:
    """Return the name of the file of a model."""
    return f"{name}.model.tar"


def note_proof(location: str, proof: Proof) -> None:
    """Write the proof of a backup beside its manifest."""
    files, root = url_to_fs(location)
    files.pipe_file(f"{root}/{PROOF}", proof.model_dump_json(indent=2).encode())


def last_proof(target: str) -> Proof | None:
    """Return the latest proof of a backup below `target`; None without one."""
    files, root = url_to_fs(target)
    proofs = []
    for path in files.glob(f"{root}/*/{PROOF}"):
        try:
            proofs.append(Proof.model_validate_json(files.cat_file(path)))
        except ValidationError:
            continue  # an unreadable proof proves nothing
    return max(proofs, key=lambda proof: proof.at, default=None)


def proof_of(location: str, items: int, points: int) -> Proof:
    """Return the proof, as of now, of the backup at `location`."""
    return Proof(
        backup=location.rstrip("/").rsplit("/", 1)[-1], at=datetime.now(UTC), items=items, points=points
    )


def described(path: Path) -> File:
    """Return name, size and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return File(name=path.name, bytes=path.stat().st_size, sha256=digest)


class _Damaged(SightlineError):
    """A file differs from the manifest in size or checksum."""


def _fetch(files: AbstractFileSystem, source: str, target: Path, wanted: File) -> None:
    """Copy a regular file and check it against the manifest while reading.

    Raises:
        _Damaged: it is no regular file, or has another size or checksum.
    """
    info: dict[str, Any] = files.info(source)
    if info["type"] != "file" or info.get("islink") or info["size"] != wanted.bytes:
        raise _Damaged
    digest, size = hashlib.sha256(), 0
    with files.open(source, "rb") as reading, target.open("xb") as writing:
        while size <= wanted.bytes and (part := reading.read(BLOCK_BYTES)):
            size += len(part)
            digest.update(part)
            writing.write(part)
    if (size, digest.hexdigest()) != (wanted.bytes, wanted.sha256):
        raise _Damaged


def _unpack_model(location: str, name: str, folder: Path) -> None:
    """Unpack a model, accepting only its own files and folders.

    Raises:
        BadBackup: there is anything else in it.
    """
    try:
        with tarfile.open(folder / model_file(name), "r:") as file:
            for member in file:
                parts = Path(member.name).parts
                if not (member.isfile() or member.isdir()) or member.issparse() or parts[:1] != (name,):
                    raise BadBackup(f"{location}: model {name} holds {member.name!r}, which is no part of it")
                file.extract(member, folder / MODELS, filter="data")
    except (tarfile.TarError, OSError) as error:
        raise BadBackup(
            f"{location}: model {name} cannot be unpacked ({error}); use another backup"
        ) from error
    if not (folder / MODELS / name).is_dir():
        raise BadBackup(f"{location}: model {name} is empty; use another backup")


def _is_same_tree(first: Path, second: Path) -> bool:
    """Return whether two folders hold the same files with the same bytes."""
    names = [sorted(path.relative_to(one) for path in one.rglob("*")) for one in (first, second)]
    return names[0] == names[1] and all(
        (first / name).is_dir() == (second / name).is_dir()
        and ((first / name).is_dir() or filecmp.cmp(first / name, second / name, shallow=False))
        for name in names[0]
    )
