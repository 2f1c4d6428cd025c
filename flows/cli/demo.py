"""Run `make demo`: fetch, ingest, search and evaluate captioned images."""

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import RenderableType
from rich.text import Text

from flows.cli.program_name import program
from flows.cli.tables.format import show
from flows.cli.tables.models import of_evaluation
from flows.cli.tables.records import of_ingest, of_results
from flows.config.settings import Settings
from flows.datasets.test_sets import NothingToEvaluate, of_records
from flows.evaluation.evaluate import evaluate
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.resources.connections import Deps, open_deps
from flows.search.gallery import render
from flows.search.query import Query, gallery_page, search
from flows.tracking.progress import stage_bars
from storage.data_directory import make_private_folder
from storage.errors import NotFound

PACKAGE = "tuxpaint-stamps-default"
STAMPS = "usr/share/tuxpaint/stamps"


class NoDemoSet(NotFound):
    """Report that the demo's images cannot be fetched."""


def run(settings: Settings, folder: Path | None) -> None:
    """Run the demo on a folder, or on Debian's captioned stamps.

    Raises:
        NoDemoSet: there is no apt here, or it cannot reach Debian's packages.
    """
    source = folder or fetch_stamps(settings.home / "demo")
    own = program(settings)
    say(f"Ingesting {source}", f"{own} ingest {shlex.quote(str(source))}")
    with open_deps(settings) as deps:
        with stage_bars(f"ingest {source.name}") as progress:
            report = ingest_source(deps, settings, Request(source), progress=progress)
        show(of_ingest(report))
        queries = searches(deps) if folder else stamp_searches(source)
        for query in queries:
            say(heading(query), f"{own} {command(query)}")
            show(of_results(search(deps, query)))
        page = write_gallery(deps, settings, queries[0])
        say("Measuring how well captions find images, and images captions", f"{own} evaluate")
        show(evaluation_table(deps, settings))
    say(f"The first search as a page: {page}", None)
    say("Try next", None)
    shown = shlex.quote(str(queries[-1].image or "FILE"))
    show(
        Text(f'  {own} search "a boat on the water" --gallery boats.html'),
        Text(f"  {own} search --image {shown} --find images"),
        Text(f"  {own} ingest ~/Pictures"),
    )


def fetch_stamps(folder: Path) -> Path:
    """Return the folder of Tux Paint's stamps, fetched from Debian once.

    Raises:
        NoDemoSet: there is no apt here, or it cannot reach Debian's packages.
    """
    stamps = folder / "stamps"
    if stamps.is_dir():
        return stamps
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise NoDemoSet("no apt here to fetch the demo's images with; run: make demo SOURCE=folder")
    say(f"Fetching Debian's package {PACKAGE}: 161 MB of captioned images, kept in {folder}", None)
    make_private_folder(folder)
    if not _run(["apt-get", "download", PACKAGE], folder) and not (
        _run(["apt-get", "update"], folder) and _run(["apt-get", "download", PACKAGE], folder)
    ):
        raise NoDemoSet(
            f"apt-get could not download {PACKAGE}; run `apt-get update` as root once, "
            "or use your own images: make demo SOURCE=folder"
        )
    [package] = folder.glob(f"{PACKAGE}_*.deb")
    unpacked = folder / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    subprocess.run(["dpkg-deb", "-x", package.name, unpacked.name], cwd=folder, check=True)
    (unpacked / STAMPS).rename(stamps)
    shutil.rmtree(unpacked)
    package.unlink()
    return stamps


def stamp_searches(stamps: Path) -> list[Query]:
    """Return five searches of the stamps that show all four directions."""
    return [
        Query(text="a musical instrument with strings", limit=6),
        Query(text="a bear", limit=6),
        Query(text="the planet we live on", find="texts", limit=5),
        Query(image=stamps / "vehicles/emergency/firetruck.png", find="texts", limit=5),
        Query(image=stamps / "hobbies/music/string/guitar_classical.png", find="images", limit=6),
    ]


def searches(deps: Deps) -> list[Query]:
    """Return searches of unknown images: by words, and by the first hit."""
    by_word = [Query(text="a person", limit=5), Query(text="something green", limit=5)]
    texts = Query(text="food", find="texts", limit=5)
    found = search(deps, by_word[0]).found
    image = found[0].item.image if found else None
    if image is None:
        return [*by_word, texts]
    by_image = Query(image=Path(image.uri), find="texts", limit=5)
    return [*by_word, texts, by_image, replace(by_image, find="images")]


def evaluation_table(deps: Deps, settings: Settings) -> RenderableType:
    """Return the evaluation, or the reason why there is none."""
    everything = of_records(deps, "all", None, None)
    with stage_bars("evaluate") as progress:
        try:
            evaluation = evaluate(
                deps, settings, (), everything, load=lambda *_: deps.encoder, progress=progress
            )
        except NothingToEvaluate as error:
            return Text(str(error))
    return of_evaluation(evaluation)


def heading(query: Query) -> str:
    """Describe a search in words."""
    what = "Images" if query.find == "images" else "Texts"
    return f"{what} for {query.text!r}" if query.text else f"{what} for the image {query.image}"


def command(query: Query) -> str:
    """Return the command and the arguments of a search."""
    subject = shlex.quote(query.text) if query.text else f"--image {shlex.quote(str(query.image))}"
    return f"search {subject} --find {query.find} --limit {query.limit}"


def write_gallery(deps: Deps, settings: Settings, query: Query) -> Path:
    """Write the gallery of a larger search, and return its path."""
    page = settings.home / "demo" / "gallery.html"
    make_private_folder(page.parent)
    larger = search(deps, replace(query, limit=24))
    page.write_text(render(gallery_page(deps, larger, settings.limits)), encoding="utf-8")
    return page


def say(title: str, as_command: str | None) -> None:
    """Print a heading and the equivalent command."""
    show(Text(f"\n{title}", style="bold"))
    if as_command:
        show(Text(f"$ {as_command}", style="dim"))


def _run(arguments: Sequence[str], folder: Path) -> bool:
    return subprocess.run(arguments, cwd=folder, stdout=subprocess.DEVNULL, check=False).returncode == 0
