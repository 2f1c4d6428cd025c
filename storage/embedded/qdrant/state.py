"""Which collections and aliases there are: one file, replaced whole.

A collection exists from the moment this file names its folder until it no longer does. So creating,
deleting and switching to a folder with a graph are one rename each, and what the file does not name is
left over from a process that was killed.
"""

import os
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError
from qdrant_client import models

FILE = "collections.json"


class Damaged(RuntimeError):
    """A file of the index cannot be read; the message says which, and what to do."""


class Stored(BaseModel):
    """A collection on disk."""

    folder: str
    """Below `shards`; another one after each graph that was built."""

    config: models.CreateCollection
    payload_schema: dict[str, models.PayloadFieldSchema] = Field(default_factory=dict)
    graph_points: int = 0
    """How many points the graph was built over; 0 without one."""


class State(BaseModel):
    """All collections by name, and the collection that each alias stands for."""

    collections: dict[str, Stored] = Field(default_factory=dict)
    aliases: dict[str, str] = Field(default_factory=dict)


def read(folder: Path) -> State:
    """Return the state in `folder`; empty where there is none yet.

    Raises:
        Damaged: the file is there and is no such state.
    """
    path = folder / FILE
    if not path.exists():
        return State()
    try:
        return State.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise Damaged(
            f"{path} cannot be read ({error.error_count()} errors); put back a copy of it, or move {folder} "
            "away: `sightline ingest` then embeds everything again"
        ) from error


def write(folder: Path, state: State) -> None:
    """Replace the state in `folder`, and sync it; a crash leaves the old one or the new."""
    write_atomically(folder / FILE, state.model_dump_json(exclude_none=True, indent=1).encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file at `path`, which only its owner may read: written, synced, renamed, synced."""
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.unlink(missing_ok=True)
    file = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(file, "wb", closefd=False) as stream:
            stream.write(content)
        os.fsync(file)
    finally:
        os.close(file)
    unfinished.replace(path)
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
