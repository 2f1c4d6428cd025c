"""Commands that look at what is stored: searching it, and telling what there is."""

from pathlib import Path
from typing import get_args

import click

from flows.cli.options import EXISTING_FILE, as_json_option, pairs, print_out
from flows.config.settings import load_settings
from flows.tracking.file_modes import usual_files


@click.command(short_help="Find pictures or texts by a text or a picture.")
@click.argument("text", required=False)
@click.option("--image", type=EXISTING_FILE, help="Search by a picture, or with TEXT by both at once.")
@click.option(
    "--find",
    type=click.Choice(["images", "texts"]),
    help="What to find.  [default: images for a text or both, texts for a picture]",
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=10, show_default=True, help="How many hits.")
@click.option("--min-score", type=click.FloatRange(-1, 1), help="Leave out hits that score lower.")
@click.option("--where", multiple=True, metavar="K=V", help="Only items with this metadata; may be repeated.")
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
    """Show what is closest to TEXT, to an image, or to both together, best first.

    Scores are cosines: comparable within one search, not between models. --where takes metadata fields,
    `source` and `key`.
    """
    if text == "" or (text is None and image is None):
        raise click.UsageError("give a TEXT, --image FILE, or both")
    settings = load_settings()
    from flows.cli.tables.records import of_results
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
        where=pairs(where),
        oversampling=settings.qdrant.oversampling,
    )
    with open_search(settings) as deps:
        results = find_items(deps, query)
        if gallery is not None:
            page = render(gallery_page(deps, results, settings.limits))
            with usual_files():
                gallery.write_text(page, encoding="utf-8")
            click.echo(f"gallery: {gallery}", err=True)
    print_out(results.as_json(), as_json, lambda: of_results(results))


@click.command(short_help="Show what is stored and how the last runs went.")
@as_json_option
def status(as_json: bool) -> None:
    """Show what is stored, what is open, and how the last runs went."""
    settings = load_settings()
    from flows.cli.tables.status import of_status
    from flows.service.status import read_status

    now = read_status(settings)
    print_out(now.as_json(), as_json, lambda: of_status(now))


@click.command(short_help="List items that show the same picture.")
@click.option("--near", is_flag=True, help="Also pictures that only look alike: resized, re-encoded, edited.")
@as_json_option
def duplicates(near: bool, as_json: bool) -> None:
    """List groups of items whose images have the same bytes.

    With --near, also images that look alike, told by a perceptual hash; the first time that reads every
    image, and later only new ones.
    """
    settings = load_settings()
    from flows.cli.tables.records import of_groups
    from flows.datasets.near_duplicates import exact_duplicates, near_duplicates
    from flows.resources.connections import open_stores
    from flows.tracking.progress import progress_bar

    with open_stores(settings) as stores:
        if near:
            with progress_bar("look at pictures") as advance:
                groups = near_duplicates(stores, settings.limits, advance=advance)
        else:
            groups = exact_duplicates(stores)
    print_out(groups.as_json(), as_json, lambda: of_groups(groups))


@click.command(short_help="Fetch captioned pictures, ingest, search, measure.")
@click.argument("source", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
def demo(source: Path | None) -> None:
    """Fetch a captioned set of images (or take the folder SOURCE), ingest it, search it, measure it."""
    settings = load_settings()
    from flows.cli.demo import run

    run(settings, source)
