"""Search, show the status and list duplicates."""

from pathlib import Path
from typing import get_args

import click

from flows.cli.options import EXISTING_FILE, as_json_option, existing_settings, pairs, print_out
from flows.config.settings import load_settings
from flows.tracking.file_modes import usual_files


@click.command(short_help="Find images or texts by a text or an image.")
@click.argument("text", required=False)
@click.option("--image", type=EXISTING_FILE, help="Search by an image, or together with TEXT by both.")
@click.option(
    "--find",
    type=click.Choice(["images", "texts"]),
    help="Kind of hits.  [default: images for a text or both, texts for an image]",
)
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=10, show_default=True, help="Number of hits."
)
@click.option("--min-score", type=click.FloatRange(-1, 1), help="Leave out hits that score lower.")
@click.option(
    "--where",
    multiple=True,
    metavar="K=V",
    help="Only items with this metadata; several values of a field mean any.",
)
@as_json_option
@click.option(
    "--gallery", type=click.Path(dir_okay=False, path_type=Path), help="Write the hits as an HTML page."
)
def search(
    text: str | None,
    image: Path | None,
    find: str | None,
    limit: int,
    min_score: float | None,
    where: tuple[str, ...],
    as_json: bool,
    gallery: Path | None,
) -> None:
    """Show the items closest to TEXT, to an image or to both.

    The best hit is first.

    Scores are cosines: comparable within one search, not between models. --where takes metadata fields,
    `source` and `key`.
    """
    if text == "" or (text is None and image is None):
        raise click.UsageError("give a TEXT, --image FILE, or both")
    conditions = pairs(where)
    settings = existing_settings()
    from flows.cli.tables.records import of_results
    from flows.cli.unknown_fields import warn_of_unknown_fields
    from flows.search.gallery import render
    from flows.search.query import Find, Query, gallery_page, open_search
    from flows.search.query import search as find_items

    default: Find = "texts" if text is None else "images"
    chosen: Find = next((known for known in get_args(Find) if known == find), default)
    query = Query(
        text,
        image,
        find=chosen,
        limit=limit,
        min_score=min_score,
        where=conditions,
        oversampling=settings.qdrant.oversampling,
    )
    with open_search(settings) as deps:
        results = find_items(deps, query)
        if query.where and not results.found:
            warn_of_unknown_fields(deps.sessions, query.where, fixed=("source", "key"))
        if gallery is not None:
            page = render(gallery_page(deps, results, settings.limits))
            with usual_files():
                gallery.write_text(page, encoding="utf-8")
            click.echo(f"gallery: {gallery}", err=True)
    print_out(results.as_json(), as_json, lambda: of_results(results))


@click.command(short_help="Show the stored items and the last runs.")
@as_json_option
def status(as_json: bool) -> None:
    """Show the stored items, the open rejects and the last runs."""
    settings = existing_settings()
    from flows.cli.tables.status import of_status
    from flows.service.status import read_status

    now = read_status(settings)
    print_out(now.as_json(), as_json, lambda: of_status(now))


@click.command(short_help="List items with the same image.")
@click.option("--near", is_flag=True, help="Also near duplicates: resized, re-encoded or edited images.")
@as_json_option
def duplicates(near: bool, as_json: bool) -> None:
    """List groups of items with byte-identical images.

    With --near, also near duplicates by perceptual hash; the first time that reads every image, and later
    only new ones.
    """
    settings = existing_settings()
    from flows.cli.tables.records import of_groups
    from flows.datasets.near_duplicates import exact_duplicates, near_duplicates
    from flows.resources.connections import open_stores
    from flows.tracking.progress import progress_bar

    with open_stores(settings) as stores:
        if near:
            with progress_bar("hash images") as advance:
                groups = near_duplicates(stores, settings.limits, advance=advance)
        else:
            groups = exact_duplicates(stores)
    print_out(groups.as_json(), as_json, lambda: of_groups(groups))


@click.command(short_help="Fetch captioned images, ingest, search, evaluate.")
@click.argument("source", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
def demo(source: Path | None) -> None:
    """Ingest, search and evaluate a set of captioned images.

    The set is fetched, unless SOURCE names a folder.
    """
    settings = load_settings()
    from flows.cli.demo import run

    run(settings, source)
