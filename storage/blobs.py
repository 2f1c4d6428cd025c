"""Store image bytes by their SHA-256, in a folder or behind fsspec."""

import re
from collections.abc import Iterator
from pathlib import Path

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from storage.files import PART, atomic_write

PREFIXES = tuple(f"{number:02x}" for number in range(256))
"""First two digits of every possible SHA-256."""

NAME = re.compile(r"[0-9a-f]{64}")


def prefix_of(sha256: str) -> str:
    """Return the first two digits, which name the folder of a blob."""
    return sha256[:2]


class Blobs:
    """Store immutable blobs by content hash; writes are idempotent.

    Args:
        url: a folder, or a URL such as `s3://bucket/pictures`; made by the first `put`.
    """

    def __init__(self, url: str) -> None:
        found: tuple[AbstractFileSystem, str] = url_to_fs(url)
        self._files, self._root = found

    def put(self, sha256: str, data: bytes) -> None:
        """Store a blob atomically; once this returns, it survives a crash."""
        path = self._path(sha256)
        if self._files.exists(path):
            return
        self._files.makedirs(self._files._parent(path), exist_ok=True)
        if isinstance(self._files, LocalFileSystem):
            atomic_write(Path(path), data)
        else:
            self._files.pipe_file(path, data)

    def get(self, sha256: str) -> bytes:
        """Read a blob.

        Raises:
            FileNotFoundError: there is no such blob.
        """
        data: bytes = self._files.cat_file(self._path(sha256))
        return data

    def delete(self, sha256: str) -> None:
        """Remove a blob, if there is one."""
        if self._files.exists(path := self._path(sha256)):
            self._files.rm_file(path)

    def names(self, prefix: str) -> set[str]:
        """Return the SHA-256 of every blob with a prefix of two digits."""
        folder = f"{self._root}/{prefix}"
        if not self._files.exists(folder):
            return set()
        names = (path.rsplit("/", 1)[-1] for path in self._files.find(folder))
        return {name for name in names if NAME.fullmatch(name)}

    def unfinished(self, prefix: str) -> list[str]:
        """Return the paths of files below `prefix` that a crash left incomplete.

        No process may be writing meanwhile.
        """
        folder = f"{self._root}/{prefix}"
        if not isinstance(self._files, LocalFileSystem) or not self._files.exists(folder):
            return []
        return sorted(path for path in self._files.find(folder) if path.endswith(PART))

    def remove_unfinished(self, prefix: str) -> None:
        """Remove the files that `unfinished` returns."""
        for path in self.unfinished(prefix):
            self._files.rm_file(path)

    def _path(self, sha256: str) -> str:
        return f"{self._root}/{prefix_of(sha256)}/{sha256[2:4]}/{sha256}"


def copy_new(source: Blobs, target: Blobs) -> Iterator[str]:
    """Copy missing blobs to `target`; yield the SHA-256 of each."""
    for prefix in PREFIXES:
        for sha256 in sorted(source.names(prefix) - target.names(prefix)):
            try:
                target.put(sha256, source.get(sha256))
            except FileNotFoundError:
                continue  # deleted meanwhile
            yield sha256
