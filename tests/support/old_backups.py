"""Write backups of format 1: a pg_dump archive and Qdrant snapshots."""

import hashlib
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import httpx
from sqlalchemy import text

from flows.maintenance.backup_files import described
from flows.resources.connections import Stores
from storage import qdrant
from storage.blobs import Blobs, copy_new
from storage.embedded.postgres.server import find_binaries
from storage.postgres import catalog, dump, migrate
from storage.qdrant.snapshots import server_kind


def an_old_backup(stores: Stores, target: Path, *, also: tuple[str, ...] = ()) -> Path:
    """Write a backup of format 1 below `target`.

    Args:
        also: tables beside our own that the archive takes along.
    """
    folder = target / "2026-01-01T00-00-00Z-0000"
    folder.mkdir(parents=True)
    tables = [table.name for table in dump.tables()]
    with stores.engine.connect() as connection:
        revision = migrate.revision_of(connection)
        dsn = stores.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    options = ["--format=custom", "--no-owner", "--no-privileges", f"--file={folder / 'postgres.dump'}"]
    options += [f"--table={name}" for name in (*tables, "seen", "alembic_version", *also)]
    subprocess.run([find_binaries() / "pg_dump", f"--dbname={dsn}", *options], check=True)
    snapshots = [_snapshot(stores, name, folder) for name in qdrant.list_collections(stores.vectors)]
    with stores.sessions() as session:
        items = catalog.counts(session)["items"]
        pictures = list(catalog.living_images(session))
    (folder / "pictures.txt").write_text("".join(f"{sha256}\n" for sha256 in pictures))
    assert list(copy_new(stores.blobs, Blobs(str(target / "pictures")))) is not None
    names = ["postgres.dump", "pictures.txt", *(one["file"] for one in snapshots)]
    manifest = {
        "format": 1,
        "made": datetime(2026, 1, 1, tzinfo=UTC).isoformat(),
        "postgres": {"method": "pg_dump", "revision": revision, "server": 18, "files": ["postgres.dump"]},
        "index": server_kind(stores.vectors),
        "snapshots": snapshots,
        "active": snapshots[0]["collection"],
        "pictures": "copy",
        "items": items,
        "lost_pictures": 0,
        "models": [],
        "files": [described(folder / name).model_dump() for name in names],
    }
    write_manifest(folder, manifest)
    return folder


def write_manifest(folder: Path, manifest: dict) -> None:
    """Write any manifest with a matching checksum."""
    content = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(content)
    (folder / "manifest.sha256").write_text(hashlib.sha256(content).hexdigest())


def rewrite(folder: Path, **changes: object) -> None:
    """Change some of what the manifest says."""
    write_manifest(folder, json.loads((folder / "manifest.json").read_bytes()) | changes)


def _snapshot(stores: Stores, name: str, folder: Path) -> dict:
    made = stores.vectors.create_snapshot(name)
    api = stores.vectors.http.client
    url = f"{api.host}/collections/{name}/snapshots/{made.name}"
    answer: httpx.Response = api._client.get(url)
    (folder / f"{name}.snapshot").write_bytes(answer.content)
    stores.vectors.delete_snapshot(name, made.name)
    return {"collection": name, "file": f"{name}.snapshot", "points": qdrant.count(stores.vectors, name)}


def execute(stores: Stores, *statements: str) -> None:
    with stores.engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
