"""Create, find, change and delete collections."""

import logging
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import qdrant_edge as edge
from qdrant_client import models

from storage.embedded.qdrant.engine import state
from storage.embedded.qdrant.engine.bindings import EngineFault, engine_errors, to_engine
from storage.embedded.qdrant.engine.collection import ASIDE, Collection
from storage.embedded.qdrant.engine.state import SHARDS, CollectionState
from storage.embedded.qdrant.protocol import config_changes
from storage.embedded.qdrant.protocol.config import spaces_of
from storage.embedded.qdrant.protocol.config_limits import require_index_use, require_supported
from storage.embedded.qdrant.protocol.errors import Conflict, NotFound, NotSupported, RequestError
from storage.files import unfinished_files

MAX_NAME_CHARS = 255
FORBIDDEN_IN_NAMES = re.compile(r'[<>:"/\\|?*\x00\x1f]')
log = logging.getLogger("sightline.qdrant")


class Store:
    """Manage the collections below `folder`, for one process."""

    def __init__(self, folder: Path) -> None:
        """Read the state, and remove the remains of killed processes.

        Raises:
            Damaged: the list of collections cannot be read, or is gone.
        """
        self.folder = folder
        self.shards = folder / SHARDS
        self.shards.mkdir(parents=True, exist_ok=True)
        self._state = state.read(folder)
        self._open: dict[str, Collection] = {}
        self._remove_leftovers()

    @property
    def names(self) -> list[str]:
        """Return the names of all collections, sorted."""
        return sorted(self._state.collections)

    @property
    def aliases(self) -> dict[str, str]:
        """Map each alias to its collection."""
        return dict(sorted(self._state.aliases.items()))

    def exists(self, name: str) -> bool:
        """Return whether a collection or an alias has this name."""
        return name in self._state.collections or name in self._state.aliases

    def get(self, name: str) -> Collection:
        """Return the collection of a name or an alias.

        Raises:
            NotFound: there is none.
        """
        real = self._state.aliases.get(name, name)
        if real not in self._state.collections:
            raise NotFound(f"collection {name!r} does not exist")
        if real not in self._open:
            stored, save = self._state.collections[real], partial(self._replace, real)
            self._open[real] = Collection(real, stored, self.shards, save)
        return self._open[real]

    def reopen(self, name: str | None) -> None:
        """Reopen one or all open collections after a panic of the engine."""
        real = self._state.aliases.get(name or "", name)
        for collection in self.open_collections():
            if name is None or collection.name == real:
                collection.reopen()

    def holds(self, collection: Collection) -> bool:
        """Return whether an open collection still exists."""
        return self._open.get(collection.name) is collection

    def open_collections(self) -> Iterator[Collection]:
        """Yield the open collections."""
        yield from list(self._open.values())

    def create(self, name: str, wanted: models.CreateCollection) -> None:
        """Create an empty collection.

        Raises:
            Conflict: a collection or an alias has this name.
            RequestError: the name or the configuration is invalid.
        """
        _require_name(name)
        if self.exists(name):
            raise Conflict(f"collection {name!r} already exists")
        require_supported(wanted)
        stored = CollectionState(folder=uuid4().hex, config=wanted)
        state.require_readable(stored)
        self.adopt(name, self.new_files(stored))

    def new_files(self, stored: CollectionState) -> CollectionState:
        """Create the files of a collection, or none."""
        path = self.shards / stored.folder
        try:
            Collection.create_files(path, stored)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        return stored

    def adopt(self, name: str, stored: CollectionState) -> None:
        """Switch `name` to the files of `stored`; remove the previous ones."""
        before = self._state.collections.get(name)
        opened = self._open.get(name)
        self._write(collections={**self._state.collections, name: stored})
        if opened is not None:
            opened.switch(stored, self.shards)
        if before is not None and before.folder != stored.folder:
            shutil.rmtree(self.shards / before.folder, ignore_errors=True)

    def delete(self, name: str) -> bool:
        """Delete a collection and its aliases; return False if none exists."""
        stored = self._state.collections.get(name)
        if stored is None:
            return False
        opened = self._open.pop(name, None)
        self._write(
            collections={other: kept for other, kept in self._state.collections.items() if other != name},
            aliases={alias: real for alias, real in self._state.aliases.items() if real != name},
        )
        if opened is not None:
            opened.changed = None  # a graph that is being built is of nothing now
            opened.close()
        shutil.rmtree(self.shards / stored.folder, ignore_errors=True)
        return True

    def update(self, name: str, change: models.UpdateCollection) -> None:
        """Change the configuration of a collection.

        This acknowledges the damage of its log.
        """
        collection = self.get(name)
        self._save(collection, **self.updated_fields(collection, change))

    @staticmethod
    def updated_fields(collection: Collection, change: models.UpdateCollection) -> dict[str, Any]:
        """Return the fields of a collection's state that an update changes."""
        return {"config": config_changes.apply_update(collection.stored.config, change), "damage": None}

    def change_aliases(self, wanted: models.ChangeAliasesOperation) -> None:
        """Apply all alias actions in order, or none.

        Raises:
            NotFound: an alias or a collection is not there.
            Conflict: a collection has the name of a new alias.
        """
        aliases = dict(self._state.aliases)
        for action in wanted.actions:
            _change(aliases, action, self._state.collections)
        self._write(aliases=aliases)

    def create_index(self, name: str, wanted: models.CreateFieldIndex) -> None:
        """Create a payload index, which speeds up filters on the field.

        Raises:
            NotSupported: the field's type is left to be guessed.
            Invalid: the index would answer no condition.
        """
        field, schema = wanted.field_name, wanted.field_schema
        if schema is None:
            raise NotSupported(f"say which type {field!r} has: field_schema is not guessed here")
        require_index_use(schema)
        collection = self.get(name)
        with engine_errors():
            operation = edge.UpdateOperation.create_field_index(field, to_engine(schema))
        collection.alter(operation)
        self._save(collection, payload_schema={**collection.stored.payload_schema, field: schema})

    def delete_index(self, name: str, field: str) -> None:
        """Delete the payload index of a field, if there is one."""
        collection = self.get(name)
        with engine_errors():
            operation = edge.UpdateOperation.delete_field_index(field)
        collection.alter(operation)
        kept = {other: schema for other, schema in collection.stored.payload_schema.items() if other != field}
        self._save(collection, payload_schema=kept)

    def create_vector(self, name: str, vector: str, wanted: models.VectorNameConfig) -> None:
        """Add a named vector, which its points lack at first.

        Nothing changes where it has that vector already.
        """
        collection = self.get(name)
        more = config_changes.with_vector(collection.stored.config, vector, wanted)
        if more is not collection.stored.config:
            collection.alter(config_changes.new_vector(vector, wanted))
            self._save(collection, config=more)

    def delete_vector(self, name: str, vector: str) -> None:
        """Delete a named vector from the collection and its points.

        Nothing changes where it has none of that name.
        """
        collection = self.get(name)
        fewer = config_changes.without_vector(collection.stored.config, vector)
        if fewer is collection.stored.config:
            return
        with engine_errors():
            operation = edge.UpdateOperation.delete_vector_name(vector)
        collection.alter(operation)
        self._save(collection, config=fewer)

    def close(self) -> None:
        """Sync and close all collections, also after a failure."""
        for collection in self.open_collections():
            try:
                collection.close()
            except (EngineFault, RequestError, OSError):
                log.exception("%s: not closed; its writes are in its log", collection.name)

    def flush_due(self) -> None:
        """Sync the collections that are due.

        The writes of one that cannot be synced are in its log.
        """
        for collection in self.open_collections():
            try:
                collection.flush_if_due()
            except (EngineFault, RequestError, OSError):
                log.exception("%s: not synced; tried again", collection.name)

    def _save(self, collection: Collection, **changes: object) -> None:
        changed = collection.stored.model_copy(update=changes)
        self._replace(collection.name, changed)
        collection.stored = changed
        collection.spaces = spaces_of(changed.config, changed.payload_schema)
        collection.changed = None  # a graph that is being built has the old schema: it is started again

    def _replace(self, name: str, stored: CollectionState) -> None:
        self._write(collections={**self._state.collections, name: stored})

    def _write(self, **changes: object) -> None:
        changed = self._state.model_copy(update=changes)
        state.write(self.folder, changed)
        self._state = changed

    def _remove_leftovers(self) -> None:
        known = {stored.folder for stored in self._state.collections.values()}
        found = {folder.name for folder in self.shards.iterdir()}
        if missing := known - found:
            # An older list, put back, names folders that are gone, and not those that took their place.
            log.error("%s lacks %s; folders that no collection names are left", self.shards, sorted(missing))
        else:
            for name in found - known:
                shutil.rmtree(self.shards / name)
        for folder in self.folder.glob("recover-*"):
            shutil.rmtree(folder)
        for file in (*unfinished_files(self.folder), *unfinished_files(self.folder / ASIDE)):
            file.unlink()


def _require_name(name: str) -> None:
    if not 1 <= len(name) <= MAX_NAME_CHARS or FORBIDDEN_IN_NAMES.search(name) or name in (".", ".."):
        raise RequestError(
            f'{name!r} cannot name a collection: 1 to {MAX_NAME_CHARS} characters, none of < > : " / \\ | ? *'
        )


def _require_alias(name: str) -> None:
    if "/" in name or name in ("", ".", ".."):
        raise RequestError(f"{name!r} cannot be an alias: it could not be a part of a request's path")


def _change(
    aliases: dict[str, str], action: models.AliasOperations, collections: dict[str, CollectionState]
) -> None:
    match action:
        case models.CreateAliasOperation(create_alias=wanted):
            if wanted.collection_name not in collections:
                raise NotFound(f"collection {wanted.collection_name!r} does not exist")
            _require_alias(wanted.alias_name)
            if wanted.alias_name in collections:
                raise Conflict(f"a collection is called {wanted.alias_name!r}")
            aliases[wanted.alias_name] = wanted.collection_name
        case models.DeleteAliasOperation(delete_alias=wanted):
            aliases.pop(wanted.alias_name, None)
        case models.RenameAliasOperation(rename_alias=wanted):
            if wanted.old_alias_name not in aliases:
                raise NotFound(f"alias {wanted.old_alias_name!r} does not exist")
            _require_alias(wanted.new_alias_name)
            if wanted.new_alias_name in collections:
                raise Conflict(f"a collection is called {wanted.new_alias_name!r}")
            aliases[wanted.new_alias_name] = aliases.pop(wanted.old_alias_name)
