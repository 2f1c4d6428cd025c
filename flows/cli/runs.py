"""Acknowledge failed runs."""

import click

from flows.cli.options import as_json_option, existing_settings, print_out


@click.group(short_help="Acknowledge failed runs.")
def runs() -> None:
    """Acknowledge failed runs, so that they are not reported any more."""


@runs.command(short_help="Acknowledge failures by id, or all.")
@click.argument("ids", metavar="ID...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Acknowledge all failures.")
@as_json_option
def acknowledge(ids: tuple[str, ...], every: bool, as_json: bool) -> None:
    """Acknowledge failed runs: status, console and metrics report them no more.

    ID is the id of a run or its beginning, as `sightline status` prints it. The runs stay on record, and the
    next failure is reported again.
    """
    if bool(ids) == every:
        raise click.UsageError("name the runs, or give --all; `sightline status` lists failures")
    settings = existing_settings()
    from rich.text import Text
    from sqlalchemy.orm import Session

    from flows.resources.connections import open_catalog
    from flows.tracking.text import count_of
    from storage.postgres.runs import acknowledge

    with open_catalog(settings) as engine, Session(engine) as session, session.begin():
        done = [id for beginning in ids or (None,) for id in acknowledge(session, beginning)]
    print_out(
        {"acknowledged": [str(id) for id in done]},
        as_json,
        lambda: Text(f"{count_of(len(done), 'failed run')} acknowledged."),
    )
