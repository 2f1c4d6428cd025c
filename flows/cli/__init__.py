"""The command line: read arguments, call one thing, print, exit."""

from flows.cli import intake, keys, learning, look, models, servers, stores
from flows.cli.group import main

__all__ = ["main"]

main.add_section("Records", look.demo, intake.ingest, intake.rejects, intake.delete)
main.add_section("Looking", look.search, look.status, look.duplicates)
main.add_section(
    "Models",
    *(learning.evaluate, learning.finetune),
    *(models.models, models.promote, models.reindex, models.rollback),
)
main.add_section("Stores", stores.reconcile, stores.purge, stores.backup, stores.restore, stores.move)
main.add_section("Servers", servers.up, servers.console, servers.serve, servers.start, servers.stop)
main.add_section("Other programs", keys.keys, servers.mcp)
