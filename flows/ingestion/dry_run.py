"""Count the changes that an ingest would make, without making them."""

from itertools import islice

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from embedding.images.decode import BadImage
from embedding.images.preparation import Downscale
from embedding.images.worker_pool import Workers
from flows.config.settings import Settings
from flows.ingestion.batches import FetchedBatch
from flows.ingestion.missing_items import DeleteDecision, DeleteLimit, MissingItems, decide, keep_missing
from flows.ingestion.pipeline import find_missing
from flows.ingestion.report import IngestReport
from flows.ingestion.request import EmptySource, Request
from flows.ingestion.run_state import RunState, TooManyRejects, check_rejects, check_rows_read
from flows.ingestion.source_batches import BatchSize, IngestRun, look_up, plan_rows, read_batches
from storage import qdrant
from storage.postgres import model_registry

CHECKED_SIDE = 16
"""Of the image that a worker hands back; the pixels are not used."""


def dry_run(engine: Engine, settings: Settings, request: Request) -> IngestReport:
    """Report the changes of an ingest, without writing.

    New images are decoded, so that the rejects are those of the ingest. All statements run in one
    transaction that is rolled back, and no model is loaded.
    """
    with Session(engine) as session:
        state = simulate(session, settings, request)
        session.rollback()
    return state.report("dry run")


def failure_of(report: IngestReport, settings: Settings, request: Request) -> str | None:
    """Return the error that the ingest would end with."""
    try:
        if request.is_whole:
            check_rows_read(report, request)
            check_rejects(report, settings.max_reject_share)
    except (EmptySource, TooManyRejects) as error:
        return str(error)
    return None


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
    with Workers(Downscale(CHECKED_SIDE), settings.decode_workers) as workers:
        for batch in read_batches(run, wanted, BatchSize(settings.batch_size, settings.batch_size)):
            known = look_up(session, run, batch)
            state.done += plan_rows(session, run, known, _bad_images(run, known, workers)).as_report()
    if request.delete_missing:
        state.decision = _decision(find_missing(session, run), request, state, settings)
        state.extra["deleted"] = state.decision.deletes
        state.extra["not_deleted"] = state.decision.leaves
    return state


def _bad_images(run: IngestRun, batch: FetchedBatch, workers: Workers) -> dict[str, BadImage]:
    """Decode the new images of a batch; return the errors by SHA-256."""
    decoding = {
        one.sha256: workers.submit(one.data, name=one.record.place)
        for one in batch.records
        if one.data is not None and one.sha256 and batch.needs_embedding(one.item_id(run.source), one)
    }
    errors = {}
    for sha256, decoded in decoding.items():
        try:
            decoded.result()
        except BadImage as error:
            errors[sha256] = error
    return errors


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
