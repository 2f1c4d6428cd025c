"""Commands of a model's life after its training: the gate, the re-index, and the way back."""

from pathlib import Path

import click

from flows.cli.options import as_json_option, print_out, run_job
from flows.config.settings import load_settings


@click.command(short_help="List models, where they come from and what became of them.")
@as_json_option
def models(as_json: bool) -> None:
    """List all models that have made vectors here, were trained here or were judged here, newest first."""
    settings = load_settings()
    from sqlalchemy.orm import Session

    from flows.cli.tables.models import of_models
    from flows.resources.connections import open_catalog
    from storage.postgres.model_history import models

    with open_catalog(settings) as engine, Session(engine) as session:
        found = models(session)
    print_out({"models": [one.as_json() for one in found]}, as_json, lambda: of_models(found))


@click.command(short_help="Decide whether searches may use a candidate.")
@click.argument("model", metavar="M")
@click.option(
    "--outside",
    type=click.Path(exists=True, path_type=Path),
    help="A manifest of other records, on which M must not have become worse.",
)
@click.option("--force", is_flag=True, help="Promote it whatever comes of it; that is put on record.")
@as_json_option
@click.pass_context
def promote(ctx: click.Context, model: str, outside: Path | None, force: bool, as_json: bool) -> None:
    """Compare M with the active model on records that neither has learned from, and decide.

    It is promoted when the 95% interval of its gain in recall@10 is above SIGHTLINE_GATE__MARGIN, and it is
    not worse by more than SIGHTLINE_GATE__TOLERANCE on the set from outside and in any language. The
    decision and its figures are put on record. Exit code 1 says that it is not promoted.
    """
    settings = load_settings()
    from flows.cli.tables.models import of_decision
    from flows.evaluation.promotion_gate import promote as decide
    from flows.resources.connections import open_stores
    from flows.tracking.progress import stage_bars

    with open_stores(settings) as stores, stage_bars("promote") as progress:
        decision = decide(stores, settings, model, outside=outside, force=force, progress=progress)
    print_out(decision.as_json(), as_json, lambda: of_decision(decision))
    ctx.exit(0 if decision.promoted else 1)


@click.command(short_help="Have searches use another model.")
@click.option(
    "--model", required=True, metavar="M", help="A candidate's name, or what SIGHTLINE_MODEL takes."
)
@click.option("--force", is_flag=True, help="Pass by the gate; that is put on record.")
@click.option("--yes", is_flag=True, help="Go on though the disk may not hold both collections.")
@click.option(
    "--max-missing",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Leave behind so many items whose pictures are gone.",
)
@as_json_option
@click.pass_obj
def reindex(debug: bool, model: str, force: bool, yes: bool, max_missing: int, as_json: bool) -> None:
    """Fill a collection with the vectors of model M, verify it, and have searches go to it in one step.

    Searches and ingests go on meanwhile. A re-index that was killed goes on when the same command is run
    again. The old collection is kept for `sightline rollback` until `sightline purge` drops it. Of the
    active model, it fills in what the collection lacks.
    """
    settings = load_settings()
    from flows.cli.tables.models import of_switched
    from flows.orchestration.jobs import models as jobs

    switched = run_job(
        settings, jobs.reindex, debug=debug, model=model, force=force, yes=yes, max_missing=max_missing
    )
    print_out(switched.as_json(), as_json, lambda: of_switched(switched))


@click.command(short_help="Have searches use the model they used before.")
@as_json_option
def rollback(as_json: bool) -> None:
    """Have searches go back to the collection they used before, at once; then fill in what it lacks."""
    settings = load_settings()
    from flows.cli.tables.models import of_switched
    from flows.reindexing.reindex import rollback as go_back
    from flows.resources.connections import open_stores
    from flows.tracking.progress import stage_bars

    with open_stores(settings) as stores, stage_bars("rollback") as progress:
        switched = go_back(stores, settings, progress=progress)
    print_out(switched.as_json(), as_json, lambda: of_switched(switched))
