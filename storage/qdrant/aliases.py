"""Resolve and move the alias that searches use."""

import time
from collections.abc import Iterable, Mapping

from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from storage.errors import Conflict, SightlineError
from storage.qdrant.collections import ALIAS, Collection, describe, require_model

NODES_DIFFER_S = 0.5
"""How long a node of a cluster may return the aliases from before a change on another node."""
PUT_BACK = "all lead where they led before; see its log, and run the command again"


class NoCollection(Conflict):
    """Signal a search before the first ingest."""

    refusal = True

    def __init__(self) -> None:
        super().__init__(
            "nothing has been ingested yet; run: sightline ingest SOURCE, or after a restore without vectors "
            "sightline reconcile --repair"
        )


class AliasNotMoved(SightlineError):
    """Signal that an alias was not moved; searches go on as before.

    The other collection is absent, or Qdrant rejected the change.
    """


def active_collection(client: QdrantClient) -> Collection | None:
    """Return the collection behind the alias, or None before the first ingest."""
    for alias in client.get_aliases().aliases:
        if alias.alias_name == ALIAS:
            return describe(client, alias.collection_name)
    return None


def require_collection(client: QdrantClient, fingerprint: str, model: str) -> Collection:
    """Return the active collection; require that its model has `fingerprint`.

    Raises:
        NoCollection: there is none yet.
        ModelMismatch: another model made it, so its vectors and this one's cannot be compared.
    """
    collection = active_collection(client)
    if collection is None:
        raise NoCollection
    require_model(collection, fingerprint, model)
    return collection


def activate(client: QdrantClient, collection: str) -> None:
    """Point the alias at `collection` atomically.

    A search sees either the old collection or the new one.

    Raises:
        AliasNotMoved: the collection is absent, or the alias does not lead there afterwards.
    """
    set_aliases(client, {ALIAS: collection})


def set_aliases(client: QdrantClient, wanted: Mapping[str, str]) -> None:
    """Point aliases at collections in one request, or change none.

    A server carries out the steps of a request one by one and keeps those before one that fails. No step
    deletes, therefore: an alias that is created again leads to the other collection from then on.

    Raises:
        AliasNotMoved: a collection is absent, or an alias does not lead there afterwards.
    """
    before = _aliases(client)
    if absent := [name for name in wanted.values() if not client.collection_exists(name)]:
        raise AliasNotMoved(
            f"Qdrant has no collection {', '.join(absent)}, so no alias was changed; "
            "compare the stores: sightline reconcile"
        )
    try:
        _change_aliases(client, wanted)
    except (UnexpectedResponse, ValueError) as error:  # rejected by a server, or by local mode
        if _put_back(client, wanted, before):
            raise AliasNotMoved(f"Qdrant rejected a change of aliases; {PUT_BACK}") from error
        raise
    if not _lead(client, wanted):
        _put_back(client, wanted, before)
        raise AliasNotMoved(f"Qdrant acknowledged a change of aliases and did not make it; {PUT_BACK}")


def _aliases(client: QdrantClient) -> dict[str, str]:
    return {known.alias_name: known.collection_name for known in client.get_aliases().aliases}


def _lead(client: QdrantClient, wanted: Mapping[str, str]) -> bool:
    """Check that all aliases are set, on every node of a cluster."""
    deadline = time.monotonic() + NODES_DIFFER_S
    while not wanted.items() <= _aliases(client).items():
        if time.monotonic() > deadline:
            return False
        time.sleep(NODES_DIFFER_S / 10)
    return True


def _put_back(client: QdrantClient, aliases: Iterable[str], before: Mapping[str, str]) -> bool:
    """Restore changed aliases; return whether any had changed."""
    now = _aliases(client)
    changed = {alias: before.get(alias) for alias in aliases if now.get(alias) != before.get(alias)}
    _change_aliases(client, changed)
    return bool(changed)


def _change_aliases(client: QdrantClient, wanted: Mapping[str, str | None]) -> None:
    """Create or move aliases in one request; delete those without a collection."""
    steps: list[models.CreateAliasOperation | models.DeleteAliasOperation] = []
    for alias, name in wanted.items():
        if name is None:
            gone = models.DeleteAlias(alias_name=alias)
            steps.append(models.DeleteAliasOperation(delete_alias=gone))
        else:
            made = models.CreateAlias(alias_name=alias, collection_name=name)
            steps.append(models.CreateAliasOperation(create_alias=made))
    if steps:
        client.update_collection_aliases(change_aliases_operations=steps)
