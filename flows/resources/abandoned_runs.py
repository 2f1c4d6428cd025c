"""Find the runs on record that ended without a report."""

from collections import defaultdict
from collections.abc import Collection
from uuid import UUID

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from storage.postgres import runs
from storage.postgres.locks import Busy, Lock, exclusive_lock, flow_lock, source_lock

LOCKS = {
    "ingest": "ingest",
    "evaluate": "evaluate",
    "prove": "prove",
    "reconcile": "reconcile",
    "finetune": "training",
    "promote": "promotion",
    "reindex": "re-index",
    "rollback": "re-index",
}
"""Names of the locks that flows without a source hold; others hold the exclusive lock."""


def abandoned_prefect_runs(engine: Engine, prefect_run_ids: Collection[UUID]) -> set[UUID]:
    """Return those of the Prefect runs that the record proves dead.

    Either another run has closed one as crashed, or all that it has open have lost their locks, which
    Postgres keeps for as long as a process lives.
    """
    own = defaultdict[UUID, list[runs.Run]](list)
    with Session(engine) as session:
        for run in runs.runs_of_prefect(session, prefect_run_ids):
            if run.prefect_run_id is not None:
                own[run.prefect_run_id].append(run)
    return {id for id, recorded in own.items() if _is_abandoned(engine, recorded)}


def _is_abandoned(engine: Engine, recorded: list[runs.Run]) -> bool:
    running = [run for run in recorded if run.outcome == "running"]
    if not running:
        return any(run.outcome == "crashed" for run in recorded)
    return all(_is_free(lock_of(engine, run)) for run in running)


def _is_free(lock: Lock) -> bool:
    try:
        with lock:
            return True
    except Busy:
        return False


def lock_of(engine: Engine, run: runs.Run) -> Lock:
    """Return the lock that a run holds while its process lives."""
    if run.source is not None:
        return source_lock(engine, run.source)
    name = LOCKS.get(run.flow)
    return exclusive_lock(engine) if name is None else flow_lock(engine, name)
