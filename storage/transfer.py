"""Copy all stored data between two pairs of stores.

Rows are copied by COPY, points by their ids.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any
from uuid import UUID

from psycopg.sql import SQL, Identifier
from qdrant_client import QdrantClient, models
from sqlalchemy import Connection, Engine, Table, delete, func, select, text
from sqlalchemy.orm import Session

from storage import qdrant
from storage.consistency.differences import PointId
from storage.errors import Conflict
from storage.postgres import dump
from storage.postgres.dump import NotEmpty
from storage.postgres.schema import RunRow
from storage.qdrant import snapshots
from storage.qdrant.snapshots import Advance, no_advance

MOVE = "move"
PAGE = 15 * qdrant.POINTS_A_REQUEST


class AlreadyMoved(Conflict):
    """Report that these servers hold all of this data directory.

    They may have changed since.
    """

    refusal = True


def system_identifier(source: Engine) -> str:
    """Return the identifier of a Postgres, independent of its folder."""
    with source.connect() as connection:
        return str(connection.scalar(text("select system_identifier from pg_control_system()")))


def require_target(source: Engine, target: Engine, vectors: QdrantClient, home: str) -> None:
    """Check that a move loses nothing in the target.

    The target must be empty, or hold part of the data directory `home`.

    Args:
        home: the identity of the source, of `system_identifier`.

    Raises:
        NotEmpty: it holds other data.
        AlreadyMoved: an earlier move of this data directory is complete.
    """
    with Session(source) as ours, Session(target) as theirs:
        known = set(ours.scalars(select(RunRow.id)))
        runs = theirs.scalars(select(RunRow).order_by(RunRow.started.desc())).all()
    own = [run for run in runs if run.flow == MOVE and run.options.get("home") == home]
    if done := next((run for run in own if run.outcome == "completed"), None):
        raise AlreadyMoved(
            f"this data directory was moved to these servers on {done.started:%Y-%m-%d}; compare them with: "
            "sightline reconcile"
        )
    foreign = [run for run in runs if run.id not in known and run not in own]
    if own and foreign:
        raise NotEmpty(
            "the servers hold an interrupted move of this data directory, and have been used since "
            f"({foreign[0].flow} on {foreign[0].started:%Y-%m-%d}); empty both, and run this again"
        )
    if own:
        return
    if (table := dump.first_filled(target)) is not None:
        raise NotEmpty(
            f"the database holds {table} already, of another data directory; move into an empty one"
        )
    if there := collection_names(vectors):
        raise NotEmpty(f"Qdrant holds {', '.join(there)} already; move into an empty one")


def copy_rows(source: Engine, target: Connection, run_id: UUID, *, advance: Advance) -> dict[str, int]:
    """Replace our tables in `target` by those of `source`.

    They are of one snapshot; the caller commits.

    Args:
        target: has the same schema.
        run_id: the only run of the target that is kept.
        advance: called with the number of rows that were written.

    Returns:
        The number of rows per table.
    """
    others = [table for table in dump.tables() if table is not RunRow.__table__]
    all_names = SQL(", ").join(Identifier(table.name) for table in others)
    frozen = source.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    with frozen.connect() as reading, dump.cursor(target) as cursor:
        cursor.execute(SQL("TRUNCATE {}").format(all_names))
        target.execute(delete(RunRow).where(RunRow.id != run_id))
        counts = {table.name: copy_table(table, reading, target, advance) for table in dump.tables()}
    dump.renew_sequences(target)
    return counts


def copy_table(table: Table, source: Connection, target: Connection, advance: Advance) -> int:
    """Append the rows of a table to `target`; return their number."""
    columns = SQL(", ").join(Identifier(column.name) for column in table.columns)
    name = Identifier(table.name)
    with (
        dump.cursor(source) as reader,
        dump.cursor(target) as writer,
        reader.copy(SQL("COPY {} ({}) TO STDOUT").format(name, columns)) as rows,
    ):
        with writer.copy(SQL("COPY {} ({}) FROM STDIN").format(name, columns)) as written:
            for part in rows:
                written.write(part)
                advance(bytes(part).count(b"\n"))  # the text format has none within a row
        return writer.rowcount


def count_rows(source: Engine) -> int:
    """Count the rows that `copy_rows` would copy."""
    with source.connect() as connection:
        counts = (select(func.count()).select_from(table) for table in dump.tables())
        return sum(connection.scalar(count) or 0 for count in counts)


def copy_collection(
    source: QdrantClient, target: QdrantClient, name: str, *, advance: Advance = no_advance
) -> int:
    """Replicate a collection in `target`; skip points that are there.

    Vectors, payloads, payload indexes, graph, quantization and metadata are the source's; the optimizer's
    settings stay the server's. No other process may write it meanwhile.

    Args:
        advance: called with the number of points that were compared.

    Returns:
        The number of its points.
    """
    make_collection(source, target, name)
    size = min(qdrant.limits_of(source, name).page, qdrant.limits_of(target, name).upsert)
    with ThreadPoolExecutor(qdrant.STREAMS) as streams:
        for page in _pages(qdrant.scroll_digests(source, name), PAGE):
            there = dict(qdrant.scroll_digests(target, name, [id for id, _ in page]))
            lacking = [id for id, digest in page if digest is None or there.get(id) != digest]
            requests = _pages(lacking, size)
            list(streams.map(partial(copy_points, source, target, name), requests))
            advance(len(page))
    many = qdrant.count(source, name)
    if qdrant.count(target, name) != many:
        _remove_others(source, target, name)
    return many


def make_collection(source: QdrantClient, target: QdrantClient, name: str) -> None:
    """Create an empty collection as in `source`, unless one exists."""
    if target.collection_exists(name) and _shape(target, name) != _shape(source, name):
        target.delete_collection(name)
    snapshots.make_collection(target, name, snapshots.shape_of(source, name))


def copy_points(source: QdrantClient, target: QdrantClient, name: str, ids: list[PointId]) -> None:
    """Copy points by id; they are searchable on return."""
    found = source.retrieve(name, qdrant.wire_ids(ids), with_payload=True, with_vectors=True)
    points = [models.PointStruct(id=p.id, vector=_sent(p.vector), payload=p.payload) for p in found]
    target.upsert(name, points, wait=True)


def copy_aliases(source: QdrantClient, target: QdrantClient) -> None:
    """Copy all aliases to `target` in one request.

    Raises:
        AliasNotMoved: `target` has no such collection, or did not set an alias; all are as before.
    """
    aliases = source.get_aliases().aliases
    qdrant.set_aliases(target, {alias.alias_name: alias.collection_name for alias in aliases})


def drop_extra_collections(source: QdrantClient, target: QdrantClient) -> None:
    """Drop the collections of `target` that `source` lacks.

    An interrupted move has left them.
    """
    for name in set(collection_names(target)) - set(collection_names(source)):
        target.delete_collection(name)


def collection_names(client: QdrantClient) -> list[str]:
    """Return the names of all collections, sorted."""
    return sorted(one.name for one in client.get_collections().collections)


def _shape(client: QdrantClient, name: str) -> tuple[qdrant.Collection, object]:
    vectors = client.get_collection(name).config.params.vectors or {}
    named = {"": vectors} if isinstance(vectors, models.VectorParams) else vectors
    return qdrant.describe(client, name), {
        space: (one.size, one.distance, one.multivector_config) for space, one in named.items()
    }


def _remove_others(source: QdrantClient, target: QdrantClient, name: str) -> None:
    for page in _pages(qdrant.scroll_digests(target, name), PAGE):
        ids = [id for id, _ in page]
        kept = dict(qdrant.scroll_digests(source, name, ids))
        if gone := [id for id in ids if id not in kept]:
            qdrant.delete_points(target, name, gone)


def _sent(vector: Any) -> Any:
    return {} if vector is None else vector


def _pages(things: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(things)
    return iter(lambda: list(islice(iterator, size)), [])
