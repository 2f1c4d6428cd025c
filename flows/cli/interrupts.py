"""Report the state after Ctrl-C, and end the process at once."""

import os
import sys

AGAIN = "run the same command again to go on"
KEPT = {
    "backup": "the backup is not complete, and restore refuses it; " + AGAIN,
    "delete": "what was deleted stays deleted, and a hidden item is not found any more; " + AGAIN,
    "demo": "what was fetched and ingested is kept; " + AGAIN,
    "evaluate": "nothing was changed",
    "finetune": "no model was saved, and searches are as before",
    "ingest": "records that are stored are kept, and the next run skips them; " + AGAIN,
    "move": "the embedded stores are as before; " + AGAIN,
    "promote": "searches are as before; " + AGAIN,
    "purge": "what was removed was unused; " + AGAIN,
    "reconcile": "the stores are as before, but for what --repair has repaired; " + AGAIN,
    "rejects": "records that are stored are kept; " + AGAIN,
    "reindex": "searches still use the collection from before; " + AGAIN,
    "restore": "the stores hold a part of the backup; empty them and restore again",
    "rollback": "run `sightline models` to see which model searches use",
}
"""State after an interrupt, by command; others change nothing."""

EXIT_STATUS = 130
"""Of a shell's command that SIGINT ended."""


def end_interrupted(command: str) -> None:
    """Report an interrupt, and end without waiting for threads.

    A thread may be waiting for a slow server. Its step can be repeated, like that of a killed process.
    """
    kept = KEPT.get(command)
    print(f"\nCancelled{f': {kept}' if kept else ''}.", file=sys.stderr)  # noqa: T201
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(EXIT_STATUS)
