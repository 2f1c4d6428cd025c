"""Commands that care for the two stores: compare, back up, restore, move, clean."""

from typing import Literal

import click

from flows.cli.options import Percent, as_json_option, print_out
from flows.config.settings import load_settings

max_delete_option = click.option(
    "--max-delete", type=Percent(), default="5%", show_default=True, help="Refuse to delete a larger share."
)
yes_option = click.option("--yes", is_flag=True, help="Delete however many there are.")


@click.command(short_help="Compare Postgres and Qdrant, and mend what differs.")
@click.option("--repair", is_flag=True, help="Mend what differs, and compare again until nothing does.")
@max_delete_option
@yes_option
@as_json_option
@click.pass_context
def reconcile(ctx: click.Context, repair: bool, max_delete: float, yes: bool, as_json: bool) -> None:
    """Compare Postgres and Qdrant record by record: id, content and model; and look for lost images.

    Without --repair nothing is changed. Exit code 1 says that they differ, or that not all could be mended;
    `sightline status` says it from then on.
    """
    settings = load_settings()
    from flows.cli.tables.stores import of_differences, of_mended
    from flows.maintenance import repair as repairing
    from flows.resources.comparison import record_comparison
    from flows.resources.connections import open_stores, with_model
    from flows.tracking.progress import stage_bars

    with open_stores(settings) as stores, stage_bars("reconcile") as progress:
        if repair:
            deps = with_model(stores, settings)
            mended = repairing.repair(deps, settings, max_delete=max_delete, yes=yes, progress=progress)
            print_out(mended.as_json(), as_json, lambda: of_mended(mended))
            damage = mended.after.damage
        else:
            report = record_comparison(stores, settings, progress=progress)
            print_out(report.as_json(), as_json, lambda: of_differences(report))
            damage = report.damage
    ctx.exit(1 if damage else 0)


@click.command(short_help="Write a backup of everything.")
@click.argument("target")
@click.option(
    "--pictures",
    type=click.Choice(["copy", "reference"]),
    default="copy",
    show_default=True,
    help="Copy pictures, or leave them where they are kept.",
)
@as_json_option
def backup(target: str, pictures: Literal["copy", "reference"], as_json: bool) -> None:
    """Write Postgres, the index, its models and the images below TARGET, a folder or an fsspec URL.

    Each backup gets a folder of its own, with checksums; images are kept once for all of them. It is
    restored into embedded stores or servers, whichever it was made from: sightline restore TARGET.
    """
    settings = load_settings()
    from flows.cli.tables.stores import of_backup
    from flows.maintenance.backup import backup as write_backup
    from flows.resources.connections import open_stores
    from flows.resources.model_loader import models_folder
    from flows.tracking.progress import stage_bars

    with open_stores(settings.with_time()) as stores, stage_bars("backup") as progress:
        made = write_backup(
            stores,
            target,
            settings.home,
            models=models_folder(settings),
            pictures=pictures,
            for_s=settings.retry_for_s,
            progress=progress,
        )
    print_out(made.as_json(), as_json, lambda: of_backup(made))


@click.command(short_help="Fill an empty home from a backup.")
@click.argument("location")
@click.option("--check", is_flag=True, help="Restore into throw-away stores only, to prove that it works.")
@as_json_option
@click.pass_context
def restore(ctx: click.Context, location: str, check: bool, as_json: bool) -> None:
    """Check the backup at LOCATION, restore it into an empty home or empty servers, and compare the stores.

    LOCATION is one backup, or the folder of several: then the latest. What is there already is never
    replaced. A backup is to be trusted like a program: its models are run. With --check nothing is changed
    but a note beside the backup, that it was proved. Exit code 1 says that the restored stores differ.
    """
    settings = load_settings()
    from flows.cli.tables.stores import of_restored
    from flows.maintenance import restore as restoring
    from flows.tracking.progress import stage_bars

    fill = restoring.check if check else restoring.restore
    with stage_bars("restore") as progress:
        restored = fill(settings.with_time(), location, progress=progress)
    print_out(restored.as_json(), as_json, lambda: of_restored(restored))
    differs = restored.proof is None if check else bool(restored.report.damage)
    ctx.exit(1 if differs else 0)


@click.command(short_help="Move the home's embedded stores into servers.")
@click.option(
    "--to-servers", is_flag=True, required=True, help="Into those of the settings; there is no other way."
)
@as_json_option
@click.pass_context
def move(ctx: click.Context, to_servers: bool, as_json: bool) -> None:  # noqa: ARG001
    """Copy what the home's embedded stores hold into the servers of SIGHTLINE_DATABASE_URL and
    SIGHTLINE_QDRANT__URL, which are empty, and compare them.

    Nothing is embedded again, and the home stays as it is. A move that was interrupted goes on when it is
    run again. Exit code 1 says that the stores differ, as they did in the home.
    """
    settings = load_settings()
    from flows.cli.tables.stores import of_moved
    from flows.maintenance.migrate_to_servers import move_to_servers
    from flows.tracking.progress import stage_bars

    with stage_bars("move") as progress:
        moved = move_to_servers(settings, progress=progress)
    print_out(moved.as_json(), as_json, lambda: of_moved(moved))
    ctx.exit(1 if moved.report.damage else 0)


@click.command(short_help="Remove what nothing needs any more.")
@click.option("--dry-run", is_flag=True, help="Count them, and remove nothing.")
@max_delete_option
@yes_option
@as_json_option
def purge(dry_run: bool, max_delete: float, yes: bool, as_json: bool) -> None:
    """Remove kept images that no item has, files and scratch folders that a crash left, and collections
    that searches have not used for SIGHTLINE_KEEP_RETIRED_DAYS.
    """
    settings = load_settings()
    from flows.cli.tables.stores import of_purge
    from flows.maintenance.purge import purge as remove_orphans
    from flows.resources.connections import open_stores

    with open_stores(settings) as stores:
        purged = remove_orphans(stores, settings, max_delete=max_delete, yes=yes, dry_run=dry_run)
    print_out(purged.as_json(), as_json, lambda: of_purge(purged, dry_run=dry_run))
