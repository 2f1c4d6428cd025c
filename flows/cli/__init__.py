"""Define the command line: read arguments, run one function, print its result."""

from flows.cli import keys, models, query, records, runs, servers, stores, training
from flows.cli.group import main

__all__ = ["main"]

main.add_section("Records", query.demo, records.ingest, records.rejects, records.delete)
main.add_section("Search", query.search, query.status, query.duplicates)
main.add_section(
    "Models",
    *(training.evaluate, training.finetune),
    *(models.models, models.promote, models.reindex, models.rollback),
)
main.add_section("Stores", stores.reconcile, stores.purge, stores.backup, stores.restore, stores.move)
main.add_section("Runs", runs.runs)
main.add_section("Servers", servers.up, servers.console, servers.serve, servers.start, servers.stop)
main.add_section("Other programs", keys.keys, servers.mcp)
