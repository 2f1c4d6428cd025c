"""Store the list of collections and aliases in one atomic file.

A collection exists while this file names its folder. So creating, deleting and switching to a folder with a
graph are one rename each, and folders that the file does not name are the remains of killed processes.
"""

from pathlib import Path

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import PydanticSerializationError
from qdrant_client import models

from storage.embedded.qdrant.protocol.errors import RequestError
from storage.errors import SightlineError
from storage.files import atomic_write

FILE = "collections.json"
SHARDS = "shards"


class DamagedState(SightlineError):
    """Report an unreadable file of the index, and the remedy."""


class CollectionState(BaseModel):
    """Describe a collection on disk."""

    folder: str
    """Folder below `shards`; each new graph has another one."""

    config: models.CreateCollection
    payload_schema: dict[str, models.PayloadFieldSchema] = Field(default_factory=dict)
    graph_points: int = 0
    """Number of points that the graph covers; 0 without one."""

    damage: str | None = None
    """Writes that were lost with the log, until an update of the collection acknowledges them."""


class IndexState(BaseModel):
    """Map names to collections, and aliases to names."""

    collections: dict[str, CollectionState] = Field(default_factory=dict)
    aliases: dict[str, str] = Field(default_factory=dict)


def read(folder: Path) -> IndexState:
    """Read the state of an index; initialise that of a new one.

    Raises:
        Damaged: the file is there and is no such state, or it is gone while there are shards.
    """
    path, shards = folder / FILE, folder / SHARDS
    if path.exists():
        return _parse(path)
    if shards.is_dir() and any(shards.iterdir()):
        raise DamagedState(
            f"{path} is missing, and {shards} has files of collections; put back a copy of it, or move "
            f"{folder} away: `sightline ingest` then embeds everything again"
        )
    write(folder, IndexState())
    return IndexState()


def _parse(path: Path) -> IndexState:
    try:
        return IndexState.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DamagedState(
            f"{path} cannot be read ({error.error_count()} errors); put back a copy of it, or move "
            f"{path.parent} away: `sightline ingest` then embeds everything again"
        ) from error


def write(folder: Path, state: IndexState) -> None:
    """Replace the state atomically and durably.

    Raises:
        RequestError: it could not be read back; the old state stays.
    """
    atomic_write(folder / FILE, _serialize(state))


def require_readable(stored: CollectionState) -> None:
    """Reject a collection that could not be read back from the file.

    Raises:
        RequestError: with the reason.
    """
    _serialize(IndexState(collections={"": stored}))


def _serialize(state: IndexState) -> bytes:
    try:
        content = state.model_dump_json(exclude_none=True, indent=1).encode()
        IndexState.model_validate_json(content)
    except (ValidationError, PydanticSerializationError, UnicodeEncodeError) as error:
        raise RequestError(f"the index could not read back this configuration: {error}") from error
    return content
