"""Ingest and delete records, and list and retry rejects."""

from pathlib import Path

import click

from flows.cli.options import (
    Percent,
    as_json_option,
    existing_settings,
    pairs,
    print_out,
    run_job,
)
from flows.config.settings import load_settings, split_list
from storage.sources.columns import CONTENT_COLUMNS


@click.command(short_help="Ingest a folder of images, or a manifest.")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--name", help="Name of the source.  [default: the folder's or file's name]")
@click.option(
    "--langs", metavar="L,…|all", help="Languages to embed beside texts without a tag.  [default: en]"
)
@click.option("--limit", type=click.IntRange(min=1), help="Read only the first LIMIT records.")
@click.option("--dry-run", is_flag=True, help="Count the changes without making them.")
@click.option(
    "--delete-missing",
    is_flag=True,
    help="Delete items that SOURCE had in an earlier run, and has no longer.",
)
@click.option(
    "--max-delete",
    type=Percent(),
    default="5%",
    show_default=True,
    help="Refuse to delete a larger share of SOURCE's items; 5 items may always go.",
)
@click.option("--yes", is_flag=True, help="Delete any number of missing items.")
@click.option(
    "--exclude",
    metavar="PATTERN",
    multiple=True,
    help="Leave out files and folders, as in .gitignore; may be repeated.",
)
@click.option(
    "--map",
    "mapped",
    metavar="NAME=COLUMN,…",
    help="Columns of a manifest that hold key, image, text or texts: image=URL,text=TEXT.",
)
@click.option("--revive", is_flag=True, help="Ingest again what `sightline delete` has deleted.")
@as_json_option
@click.pass_obj
def ingest(
    debug: bool,
    source: Path,
    name: str | None,
    langs: str | None,
    limit: int | None,
    dry_run: bool,
    delete_missing: bool,
    max_delete: float,
    yes: bool,
    revive: bool,
    exclude: tuple[str, ...],
    mapped: str | None,
    as_json: bool,
) -> None:
    """Ingest SOURCE: a folder of images, or a manifest (.jsonl, .csv, .parquet).

    Run it again to pick up changes: unchanged records cost nothing. Rejected records are listed by
    `sightline rejects`; the run goes on without them. --delete-missing deletes nothing if a part of SOURCE
    cannot be read, regardless of --max-delete and --yes.

    It is a flow run of Prefect where PREFECT_API_URL is set or `sightline up` or `serve` runs.
    """
    if limit is not None and delete_missing:
        raise click.UsageError("--delete-missing needs the whole source; leave out --limit")
    settings = load_settings()
    from flows.cli.tables.records import of_ingest
    from flows.ingestion.dry_run import dry_run as count_changes
    from flows.ingestion.dry_run import failure_of
    from flows.ingestion.request import Request
    from flows.ingestion.run_state import LimitExceeded
    from flows.orchestration.jobs import ingest as jobs
    from flows.resources.connections import open_catalog

    columns = mapped_columns(mapped)
    if dry_run:
        chosen = None if langs is None else split_list(langs)
        reading = settings.reading({"exclude": exclude, "columns": columns})
        request = Request(
            source,
            name,
            chosen,
            limit,
            delete_missing,
            revive,
            max_delete=max_delete,
            yes=yes,
            reading=reading,
        )
        with open_catalog(settings) as engine:
            report = count_changes(engine, settings, request)
        print_out(report.as_json(), as_json, lambda: of_ingest(report))
        if failure := failure_of(report, settings, request):
            click.echo(f"The ingest would fail with: {failure}", err=True)
        return
    try:
        report = run_job(
            settings,
            jobs.ingest,
            debug=debug,
            location=source,
            name=name,
            langs=langs,
            limit=limit,
            delete_missing=delete_missing,
            revive=revive,
            max_delete=max_delete,
            yes=yes,
            exclude=list(exclude),
            columns=columns,
        )
    except LimitExceeded as error:
        failed = error.report
        print_out(failed.as_json(), as_json, lambda: of_ingest(failed))
        raise
    print_out(report.as_json(), as_json, lambda: of_ingest(report))


def mapped_columns(given: str | None) -> dict[str, str]:
    """Parse a mapping of columns such as `image=URL,text=TEXT`.

    Raises:
        UsageError: a part has another form, or maps no content column.
    """
    columns = {}
    for part in split_list(given or ""):
        content, equals, column = part.partition("=")
        if not equals or not column or content not in CONTENT_COLUMNS or content in columns:
            allowed = ", ".join(CONTENT_COLUMNS)
            raise click.UsageError(f"--map {part}: write NAME=COLUMN, each NAME once, one of {allowed}")
        columns[content] = column
    return columns


@click.command(short_help="Delete items for good, with a receipt.")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option("--source", help="Only items of this source; without a KEY, all of them.")
@click.option(
    "--where",
    multiple=True,
    metavar="K=V",
    help="Only items with this metadata; several values of a field mean any.",
)
@click.option("--dry-run", is_flag=True, help="Count the items without deleting them.")
@as_json_option
def delete(
    keys: tuple[str, ...], source: str | None, where: tuple[str, ...], dry_run: bool, as_json: bool
) -> None:
    """Delete items by KEY, source and metadata; all conditions must hold.

    Their points go from every collection, and their images unless another item shares them. They stay
    deleted when their source still has them, until it is ingested with --revive. The receipt, in the
    folder `receipts` of the data directory, lists the deleted items; --json prints it.
    """
    if not keys and source is None and not where:
        raise click.UsageError("name a KEY, a --source or --where K=V: without any, it would be everything")
    settings = existing_settings()
    from flows.cli.tables.format import show
    from flows.cli.tables.records import of_dry_delete, of_receipt
    from flows.cli.unknown_fields import warn_of_unknown_fields
    from flows.maintenance.delete import count_selected, delete_items
    from flows.resources.connections import open_stores
    from storage.postgres.catalog import Selection

    selection = Selection(keys, source, pairs(where))
    with open_stores(settings) as stores:
        if dry_run:
            found = count_selected(stores, selection)
            if not found:
                warn_of_unknown_fields(stores.sessions, selection.where)
            print_out({"would_delete": found}, as_json, lambda: of_dry_delete(found))
            return
        receipt = delete_items(stores, selection, settings.home / "receipts", for_s=settings.retry_for_s)
        if not receipt.items:
            warn_of_unknown_fields(stores.sessions, selection.where)
    if as_json:
        click.echo(receipt.path.read_text("utf-8"), nl=False)
        return
    show(of_receipt(receipt))


reason_option = click.option("--reason", metavar="CODE", help="Only rejects with this reason code.")
of_source_option = click.option("--source", metavar="NAME", help="Only rejects of this source.")


@click.group(short_help="List rejected records with their reasons.", invoke_without_command=True)
@reason_option
@of_source_option
@click.option("--ignored", is_flag=True, help="List the ignored files of each source's last ingest instead.")
@as_json_option
@click.pass_context
def rejects(ctx: click.Context, reason: str | None, source: str | None, ignored: bool, as_json: bool) -> None:
    """List rejected records, each with its reason and the remedy.

    Once they are corrected at their source, `sightline rejects retry` retries them alone.
    """
    if ctx.invoked_subcommand is not None:
        if reason or source or ignored or as_json:
            raise click.UsageError(f"put the options after {ctx.invoked_subcommand!r}")
        return
    settings = existing_settings()
    from sqlalchemy.orm import Session

    from flows.cli.tables.records import of_ignored, of_rejects
    from flows.resources.connections import open_catalog
    from storage.postgres.rejects import open_rejects
    from storage.postgres.runs import last_left_out

    if ignored:
        with open_catalog(settings) as engine, Session(engine) as session:
            left_out = last_left_out(session, reason=reason, source=source)
        print_out({"ignored": left_out}, as_json, lambda: of_ignored(left_out))
        return
    with open_catalog(settings) as engine, Session(engine) as session:
        found = open_rejects(session, reason=reason, source=source)
    print_out({"rejects": [reject.as_json() for reject in found]}, as_json, lambda: of_rejects(found))


@rejects.command(short_help="Retry rejected records.")
@reason_option
@of_source_option
@as_json_option
@click.pass_context
def retry(ctx: click.Context, reason: str | None, source: str | None, as_json: bool) -> None:
    """Read the sources of open rejects again, and retry those records alone.

    Valid records are ingested, and their rejects resolved. Exit code 1: a source could not be read.
    """
    settings = existing_settings()
    from flows.cli.tables.records import of_retries
    from flows.ingestion.retry_rejects import retry_rejects
    from flows.resources.connections import open_stores, with_model
    from storage.postgres.rejects import open_rejects

    with open_stores(settings) as stores:
        with stores.sessions() as session:
            found = open_rejects(session, reason=reason, source=source)
        if found:  # or there is no need for the model
            done = retry_rejects(with_model(stores, settings), settings, reason=reason, source=source)
        else:
            done = []
    print_out({"sources": [one.as_json() for one in done]}, as_json, lambda: of_retries(done))
    ctx.exit(1 if any(one.problem for one in done) else 0)
