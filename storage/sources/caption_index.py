"""Index the captions of a folder's images on disk."""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

SCHEMA = """
CREATE TABLE captions (
    path TEXT, name TEXT, below TEXT NOT NULL, place TEXT NOT NULL,
    texts TEXT NOT NULL, metadata TEXT NOT NULL,
    met INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX by_path ON captions (path);
CREATE INDEX by_name ON captions (name);
"""


@dataclass(frozen=True, slots=True)
class Caption:
    """Hold the texts and metadata of one image."""

    place: str
    """Readable position in the file."""

    path: str
    """Of the image, relative to the source."""

    texts: tuple[tuple[str, str | None], ...]
    metadata: dict[str, Any]
    anywhere_below: str | None = None
    """Folder below which any file of this name is the image; None: only `path` is."""


class CaptionIndex:
    """Find captions by the path of their image.

    A temporary database holds them: a file may have millions.
    """

    def __init__(self) -> None:
        self._db: sqlite3.Connection | None = None

    def add(self, captions: Iterator[Caption]) -> None:
        """Add the captions of one file."""
        if self._db is None:
            self._db = sqlite3.connect("", check_same_thread=False)  # threads take turns, as in any generator
            self._db.executescript(SCHEMA)
        with self._db:
            self._db.executemany(
                "INSERT INTO captions (path, name, below, place, texts, metadata) VALUES (?, ?, ?, ?, ?, ?)",
                map(_row, captions),
            )

    def find(self, path: str) -> tuple[list[tuple[str, str | None]], dict[str, Any]]:
        """Return the texts and metadata of an image; empty without any."""
        texts, metadata = list[tuple[str, str | None]](), dict[str, Any]()
        if self._db is None:
            return texts, metadata
        name = path.rpartition("/")[2]
        found = self._db.execute(
            "SELECT rowid, below, texts, metadata FROM captions WHERE path = ? OR name = ? ORDER BY rowid",
            (path, name),
        ).fetchall()
        for id, below, more_texts, more in found:
            if path.startswith(below):
                texts += [(text, lang) for text, lang in json.loads(more_texts)]
                metadata = json.loads(more) | metadata
                self._db.execute("UPDATE captions SET met = 1 WHERE rowid = ?", (id,))
        return texts, metadata

    def unmet(self) -> Iterator[str]:
        """Yield the places of captions without an image."""
        if self._db is not None:
            for (place,) in self._db.execute("SELECT place FROM captions WHERE NOT met ORDER BY rowid"):
                yield place

    def close(self) -> None:
        """Remove the temporary database."""
        if self._db is not None:
            self._db.close()


def _row(one: Caption) -> tuple[str | None, str | None, str, str, str, str]:
    exact = one.anywhere_below is None
    path, name = (one.path, None) if exact else (None, one.path.rpartition("/")[2])
    texts, metadata = json.dumps(one.texts), json.dumps(one.metadata)
    return path, name, one.anywhere_below or "", f"{one.place}: {one.path}", texts, metadata
