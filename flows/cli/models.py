"""List, promote, re-index and roll back models."""

from pathlib import Path

import click

from flows.cli.options import as_json_option, existing_settings, print_out, run_job


@click.command(short_help="List models with their origin and state.")
@as_json_option
def models(as_json: bool) -> None:
    """List all models that were used, trained or evaluated here, newest first."""
    settings = existing_settings()
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
    help="A manifest of other records, on which M must not be worse.",
)
@click.option("--force", is_flag=True, help="Promote it in any case; that is recorded.")
@as_json_option
@click.pass_context
def promote(ctx: click.Context, model: str, outside: Path | None, force: bool, as_json: bool) -> None:
    """Compare M with the active model on held-out records, and decide.

    It is promoted when the 95% interval of its gain in recall@10 is above SIGHTLINE_GATE__MARGIN, and it is
    not worse by more than SIGHTLINE_GATE__TOLERANCE on the outside set and in any language. The decision and
    its figures are recorded. Exit code 1: it is not promoted.
    """
    settings = existing_settings()
    from flows.cli.tables.models import of_decision
    from flows.evaluation.promotion_gate import promote as decide
    from flows.resources.connections import open_stores
    from flows.tracking.progress import stage_bars

    with open_stores(settings) as stores, stage_bars("promote") as progress:
        decision = decide(stores, settings, model, outside=outside, force=force, progress=progress)
    print_out(decision.as_json(), as_json, lambda: of_decision(decision))
    ctx.exit(0 if decision.promoted else 1)


@click.command(short_help="Switch searches to another model.")
@click.option(
    "--model", required=True, metavar="M", help="A candidate's name, or any value of SIGHTLINE_MODEL."
)
@click.option("--force", is_flag=True, help="Bypass the promotion gate; that is recorded.")
@click.option("--yes", is_flag=True, help="Go on although the disk may not hold both collections.")
@click.option(
    "--max-missing",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Leave out at most this many items whose images are missing.",
)
@as_json_option
@click.pass_obj
def reindex(debug: bool, model: str, force: bool, yes: bool, max_missing: int, as_json: bool) -> None:
    """Fill and verify a collection of model M; then switch searches.

    Searches and ingests go on meanwhile. The same command resumes a re-index that was killed. The old
    collection is kept for `sightline rollback` until `sightline purge` drops it. For the active model, it
    backfills missing points.
    """
    settings = existing_settings()
    from flows.cli.tables.models import of_switched
    from flows.orchestration.jobs import models as jobs

    switched = run_job(
        settings, jobs.reindex, debug=debug, model=model, force=force, yes=yes, max_missing=max_missing
    )
    print_out(switched.as_json(), as_json, lambda: of_switched(switched))


@click.command(short_help="Switch searches back to the model before.")
@as_json_option
def rollback(as_json: bool) -> None:
    """Switch searches back to the collection before at once; then backfill it."""
    settings = existing_settings()
    from flows.cli.tables.models import of_switched
    from flows.reindexing.reindex import rollback as roll_back
    from flows.resources.connections import open_stores
    from flows.tracking.progress import stage_bars

    with open_stores(settings) as stores, stage_bars("rollback") as progress:
        switched = roll_back(stores, settings, progress=progress)
    print_out(switched.as_json(), as_json, lambda: of_switched(switched))
