"""What a page of the console costs at 200,000 records, 5,000 runs and 5,000 rejects.

The rows are made by Postgres itself, without pictures and without points. Each page is asked for a number of
times after a first one, over HTTP on this machine; a look at all tables, which a thread takes every few
seconds and no page waits for, is timed beside it.
"""

import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

import httpx
from rich.console import Console as Terminal
from rich.table import Table
from sqlalchemy import Engine, text

from flows.config.settings import Settings
from flows.console.layout import PAGES
from flows.resources.connections import open_catalog
from flows.service.observer import observe
from flows.service.pool import Backend
from tests.bench.material import scratch
from tests.support.signed_in import signed_in

RECORDS, RUNS, REJECTS = 200_000, 5_000, 5_000
PORT = 8765
ASKED = 30
LOOKS = 5

FILL = (
    "insert into models (fingerprint, name, dim, state) values ('bench', 'bench', 16, 'active')",
    """
    insert into collections (name, fingerprint, state, activated)
    values ('items__bench', 'bench', 'active', now())
    """,
    """
    insert into items
        (id, source, key, texts, image_sha256, uri, width, height, format, metadata,
         content_hash, record_hash, created, updated, deleted, deletion)
    select gen_random_uuid(), 'source' || n % 5, 'key' || n,
        jsonb_build_array(jsonb_build_object('text', 'thing ' || n, 'lang', null, 'embedded', true)),
        encode(sha256(n::text::bytea), 'hex'), '/pictures/' || n || '.jpg', 640, 480, 'JPEG',
        jsonb_build_object('year', 2000 + n % 20), encode(sha256(n::text::bytea), 'hex'),
        encode(sha256(n::text::bytea), 'hex'), now() - interval '1 day' * (n % 60),
        now() - interval '1 day' * (n % 60), case when n % 50 = 0 then now() end,
        case when n % 50 = 0 then 'asked' end
    from generate_series(1, :records) n
    """,
    """
    insert into marks (item_id, collection, content_hash, record_hash)
    select id, 'items__bench', content_hash, record_hash from items
    where deleted is null and key not like '%99'
    """,
    """
    insert into runs (id, flow, source, location, started, ended, outcome, counts, seconds)
    select gen_random_uuid(), (array['ingest', 'evaluate', 'reconcile', 'purge'])[1 + n % 4],
        case when n % 4 = 0 then 'source' || n % 5 end, case when n % 4 = 0 then '/source' end,
        now() - interval '30 minutes' * n, now() - interval '30 minutes' * n + interval '100 seconds',
        case when n % 17 = 0 then 'failed' else 'completed' end,
        jsonb_build_object('read', 1000, 'embedded', 10, 'rejected', 3),
        jsonb_build_object('total', 100, 'embed', 80, 'decode', 15, 'read', 5)
    from generate_series(1, :runs) n
    """,
    """
    insert into rejects (id, source, place, key, reason, message, raw, run_id)
    select gen_random_uuid(), 'source' || n % 5, 'line ' || n, 'key' || n,
        (array['not_a_picture', 'missing_file', 'nothing_to_embed'])[1 + n % 3], 'it cannot be read', '{}',
        (select id from runs limit 1)
    from generate_series(1, :rejects) n
    """,
)


def fill(engine: Engine) -> None:
    sizes = {"records": RECORDS, "runs": RUNS, "rejects": REJECTS}
    with engine.begin() as connection:
        for statement in map(text, FILL):
            own = {name: sizes[name] for name in statement._bindparams}
            connection.execute(statement, own)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("vacuum analyze"))


def milliseconds_of(client: httpx.Client, path: str) -> list[float]:
    """Return how long each answer took, after a first one."""
    took = []
    for _ in range(ASKED + 1):
        started = perf_counter()
        client.get(path).raise_for_status()
        took.append((perf_counter() - started) * 1000)
    return took[1:]


def wait_for(url: str) -> None:
    while True:
        try:
            httpx.get(f"{url}/healthz").raise_for_status()
        except httpx.TransportError:
            sleep(0.2)
        else:
            return


def look_milliseconds(home: Path) -> list[float]:
    backend = Backend(Settings(home=home))
    took = [observe(backend).took_s * 1000 for _ in range(LOOKS)]
    backend.close()
    return took


def main() -> None:
    table = Table("page", "p50, ms", "most, ms")
    with scratch() as folder:
        home = folder / "home"
        with open_catalog(Settings(home=home)) as engine:
            fill(engine)
        command = [sys.executable, "-m", "flows.cli", "console", "--port", str(PORT)]
        served = subprocess.Popen(command, env=os.environ | {"SIGHTLINE_HOME": str(home)})
        try:
            url = f"http://127.0.0.1:{PORT}"
            wait_for(url)
            with signed_in(url, home) as client:
                for name, path, _ in PAGES:
                    took = milliseconds_of(client, path)
                    table.add_row(name, f"{median(took):.0f}", f"{max(took):.0f}")
        finally:
            served.terminate()
            served.wait()
        looks = look_milliseconds(home)
        table.add_row("a look at all tables", f"{median(looks):.0f}", f"{max(looks):.0f}")
    Terminal().print(table)


if __name__ == "__main__":
    main()
