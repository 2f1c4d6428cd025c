"""Reconcile, back up, restore, move and purge the stores."""

from typing import Literal

import click

from flows.cli.options import Percent, as_json_option, existing_settings, print_out
from flows.config.settings import load_settings

max_delete_option = click.option(
    "--max-delete", type=Percent(), default="5%", show_default=True, help="Refuse to delete a larger share."
)
yes_option = click.option("--yes", is_flag=True, help="Delete any number.")


@click.command(short_help="Compare Postgres and Qdrant, and repair differences.")
@click.option("--repair", is_flag=True, help="Repair the differences, and compare again until none is left.")
@max_delete_option
@yes_option
@as_json_option
@click.pass_context
def reconcile(ctx: click.Context, repair: bool, max_delete: float, yes: bool, as_json: bool) -> None:
    """Compare Postgres, Qdrant and the stored images record by record.

    Without --repair nothing is changed. Exit code 1: they differ, or not all could be repaired;
    `sightline status` reports it from then on.
    """
    settings = existing_settings()
    from flows.cli.tables.stores import of_differences, of_repair
    from flows.maintenance import repair as repairing
    from flows.resources.comparison import record_comparison
    from flows.resources.connections import open_stores, with_model
    from flows.tracking.progress import stage_bars

    with open_stores(settings) as stores, stage_bars("reconcile") as progress:
        if repair:
            deps = with_model(stores, settings)
            repaired = repairing.repair(deps, settings, max_delete=max_delete, yes=yes, progress=progress)
            print_out(repaired.as_json(), as_json, lambda: of_repair(repaired))
            damage = repaired.after.damage
        else:
            report = record_comparison(stores, settings, progress=progress)
            print_out(report.as_json(), as_json, lambda: of_differences(report))
            damage = report.damage
    ctx.exit(1 if damage else 0)


@click.command(short_help="Back up everything.")
@click.argument("target")
@click.option(
    "--pictures",
    type=click.Choice(["copy", "reference"]),
    default="copy",
    show_default=True,
    help="Copy images, or only refer to them.",
)
@as_json_option
def backup(target: str, pictures: Literal["copy", "reference"], as_json: bool) -> None:
    """Back up all stores to TARGET, a folder or an fsspec URL.

    Each backup gets a folder of its own, with checksums; images are kept once for all of them. It can be
    restored into embedded stores and into servers: sightline restore TARGET.
    """
    settings = existing_settings()
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


@click.command(short_help="Restore a backup into empty stores.")
@click.argument("location")
@click.option("--check", is_flag=True, help="Restore into temporary stores only, to prove the backup.")
@as_json_option
@click.pass_context
def restore(ctx: click.Context, location: str, check: bool, as_json: bool) -> None:
    """Check the backup at LOCATION, restore it into empty stores and compare.

    LOCATION is one backup, or the folder of several: then the latest. Existing data is never replaced. Trust
    a backup as you would a program: its models are run. With --check nothing is changed but a note beside
    the backup, that it was proved. Exit code 1: the restored stores differ.
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


@click.command(short_help="Copy the embedded stores into servers.")
@click.option(
    "--to-servers", is_flag=True, required=True, help="Into the servers of the settings; the only direction."
)
@as_json_option
@click.pass_context
def move(ctx: click.Context, to_servers: bool, as_json: bool) -> None:  # noqa: ARG001
    """Copy the embedded stores into empty servers, and compare.

    The servers are those of SIGHTLINE_DATABASE_URL and SIGHTLINE_QDRANT__URL. Nothing is embedded again, and
    the data directory stays as it is. The same command resumes an interrupted move. Exit code 1: the stores
    differ, as they did before.
    """
    settings = existing_settings()
    from flows.cli.tables.stores import of_moved
    from flows.maintenance.migrate_to_servers import move_to_servers
    from flows.tracking.progress import stage_bars

    with stage_bars("move") as progress:
        moved = move_to_servers(settings, progress=progress)
    print_out(moved.as_json(), as_json, lambda: of_moved(moved))
    ctx.exit(1 if moved.report.damage else 0)


@click.command(short_help="Remove unused images and collections.")
@click.option("--dry-run", is_flag=True, help="Count without removing.")
@max_delete_option
@yes_option
@as_json_option
def purge(dry_run: bool, max_delete: float, yes: bool, as_json: bool) -> None:
    """Remove unused images, files that a crash left, and retired collections.

    Collections are kept for SIGHTLINE_KEEP_RETIRED_DAYS after searches last used them.
    """
    settings = existing_settings()
    from flows.cli.tables.stores import of_purge
    from flows.maintenance.purge import purge as remove_orphans
    from flows.resources.connections import open_stores

    with open_stores(settings) as stores:
        purged = remove_orphans(stores, settings, max_delete=max_delete, yes=yes, dry_run=dry_run)
    print_out(purged.as_json(), as_json, lambda: of_purge(purged, dry_run=dry_run))
