"""Picture bytes by their SHA-256: a folder, or whatever else fsspec reaches."""

import re
from collections.abc import Iterator
from pathlib import Path

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from storage.files import PART, atomic_write

PREFIXES = tuple(f"{number:02x}" for number in range(256))
"""All that a SHA-256 can begin with."""

NAME = re.compile(r"[0-9a-f]{64}")


class Blobs:
    """A content-addressed store: a blob never changes, so writing it twice is the same as once.

    Args:
        url: a folder, or a URL such as `s3://bucket/pictures`; made on the first `put`.
    """

    def __init__(self, url: str) -> None:
        found: tuple[AbstractFileSystem, str] = url_to_fs(url)
        self._files, self._root = found

    def put(self, sha256: str, data: bytes) -> None:
        """Store `data`; once this returns, it survives a crash, and half a blob is never seen."""
        path = self._path(sha256)
        if self._files.exists(path):
            return
        self._files.makedirs(self._files._parent(path), exist_ok=True)
        if isinstance(self._files, LocalFileSystem):
            atomic_write(Path(path), data)
        else:
            self._files.pipe_file(path, data)

    def get(self, sha256: str) -> bytes:
        """Return the bytes stored under `sha256`.

        Raises:
            FileNotFoundError: there is no such blob.
        """
        data: bytes = self._files.cat_file(self._path(sha256))
        return data

    def delete(self, sha256: str) -> None:
        """Remove the blob; it is no error when there is none."""
        if self._files.exists(path := self._path(sha256)):
            self._files.rm_file(path)

    def names(self, prefix: str) -> set[str]:
        """Return the SHA-256 of every blob that starts with `prefix`, two hexadecimal digits."""
        folder = f"{self._root}/{prefix}"
        if not self._files.exists(folder):
            return set()
        names = (path.rsplit("/", 1)[-1] for path in self._files.find(folder))
        return {name for name in names if NAME.fullmatch(name)}

    def unfinished(self, prefix: str) -> list[str]:
        """Return the paths of files below `prefix` that a crash left half-written; nobody may be writing."""
        folder = f"{self._root}/{prefix}"
        if not isinstance(self._files, LocalFileSystem) or not self._files.exists(folder):
            return []
        return sorted(path for path in self._files.find(folder) if path.endswith(PART))

    def remove_unfinished(self, prefix: str) -> None:
        """Remove what `unfinished` tells of."""
        for path in self.unfinished(prefix):
            self._files.rm_file(path)

    def _path(self, sha256: str) -> str:
        return f"{self._root}/{sha256[:2]}/{sha256[2:4]}/{sha256}"


def copy_new(source: Blobs, target: Blobs) -> Iterator[str]:
    """Copy what `target` lacks; yield the SHA-256 of each blob once it is there."""
    for prefix in PREFIXES:
        for sha256 in sorted(source.names(prefix) - target.names(prefix)):
            try:
                target.put(sha256, source.get(sha256))
            except FileNotFoundError:
                continue  # deleted meanwhile
            yield sha256
