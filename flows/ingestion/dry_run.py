"""Count the changes that an ingest would make, without making them."""

from itertools import islice

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from flows.config.settings import Settings
from flows.ingestion.missing_items import DeleteDecision, DeleteLimit, MissingItems, decide, keep_missing
from flows.ingestion.pipeline import find_missing
from flows.ingestion.report import IngestReport
from flows.ingestion.request import EmptySource, Request
from flows.ingestion.run_state import RunState, TooManyRejects, check_rejects, check_rows_read
from flows.ingestion.source_batches import BatchSize, look_up, plan_rows, read_batches
from storage import qdrant
from storage.postgres import model_registry


def dry_run(engine: Engine, settings: Settings, request: Request) -> IngestReport:
    """Report the changes of an ingest, without decoding images or writing.

    All statements run in one transaction that is rolled back, and no model is loaded.
    """
    with Session(engine) as session:
        state = simulate(session, settings, request)
        session.rollback()
    return state.report("dry run")


def simulate(session: Session, settings: Settings, request: Request) -> RunState:
    """Compare a source with the catalog, in the transaction of `session`.

    The claims of the simulated run are all that is written.
    """
    rows = request.rows()
    name = model_registry.active_collection(session) or "none yet"
    collection = qdrant.Collection(name, settings.model, "", dim=0)
    run = request.new_run(request.source(session), collection, settings)
    state = RunState(run, keeps_excluded=request.delete_missing and not request.yes)
    wanted = islice(state.count_rows(rows), request.limit)
    for batch in read_batches(run, wanted, BatchSize(settings.batch_size, settings.batch_size)):
        state.done += plan_rows(session, run, look_up(session, run, batch)).as_report()
    if request.delete_missing:
        state.decision = _decision(find_missing(session, run), request, state, settings)
        state.extra["deleted"] = state.decision.deletes
        state.extra["not_deleted"] = state.decision.leaves
    return state


def _decision(missing: MissingItems, request: Request, state: RunState, settings: Settings) -> DeleteDecision:
    """Return the decision of an ingest about missing items.

    A run that fails before it decides deletes none.
    """
    try:
        check_rows_read(state.report("dry run"), request)
        check_rejects(state.report("dry run"), settings.max_reject_share)
    except (EmptySource, TooManyRejects) as error:
        return keep_missing(missing, str(error))
    return decide(missing, state.coverage, DeleteLimit(request.max_delete, request.yes))
