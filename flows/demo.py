"""`make demo`: fetch a captioned set of pictures, ingest it, search it four ways, judge it."""

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from flows import tables
from flows.deps import Deps, open_catalog, open_deps
from flows.evaluate import evaluate
from flows.gallery import render
from flows.intake import Request, dry_run
from flows.progress import progress_bar
from flows.report import IngestReport
from flows.search import Query, gallery_page, search
from flows.settings import Settings

PACKAGE = "tuxpaint-stamps-default"
STAMPS = "usr/share/tuxpaint/stamps"


class NoDemoSet(RuntimeError):
    """The demo's pictures could not be fetched; any folder of pictures does as well."""


def run(settings: Settings, own: Path | None) -> None:
    """Run the demo on the folder `own`, else on Debian's captioned stamps.

    Raises:
        NoDemoSet: there is no apt here, or it cannot reach Debian's packages.
    """
    source = own or fetch_stamps(settings.home / "demo")
    say(f"Ingesting {source}", f"sightline ingest {shlex.quote(str(source))}")
    tables.show(tables.of_ingest(ingest_changes(settings, source)))
    with open_deps(settings) as deps:
        queries = searches(source) if own else stamp_searches(source)
        for query in queries:
            say(heading(query), command(query))
            tables.show(tables.of_results(search(deps, query)))
        page = write_gallery(deps, settings, queries[0])
        say("Measuring how well captions find pictures, and pictures captions", "sightline evaluate")
        with progress_bar("captions") as advance:
            tables.show(tables.of_evaluation(evaluate(deps, advance=advance)))
    say(f"The first search as a page: {page}", None)
    say("Try next", None)
    shown = shlex.quote(str(queries[-1].image))
    tables.show(
        Text('  .venv/bin/sightline search "a boat on the water" --gallery boats.html'),
        Text(f"  .venv/bin/sightline search --image {shown} --find images"),
        Text("  .venv/bin/sightline ingest ~/Pictures"),
    )


def ingest_changes(settings: Settings, source: Path) -> IngestReport:
    """Ingest `source`, but start no flow where there is nothing to do: that saves some ten seconds."""
    with open_catalog(settings) as engine:
        planned = dry_run(engine, settings, Request(source))
    if planned.read and planned.unchanged == planned.read:
        return planned
    from flows.ingest import ingest

    return ingest(source)


def fetch_stamps(folder: Path) -> Path:
    """Return the folder of Tux Paint's stamps, fetched from Debian unless it is there already.

    Raises:
        NoDemoSet: there is no apt here, or it cannot reach Debian's packages.
    """
    stamps = folder / "stamps"
    if stamps.is_dir():
        return stamps
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise NoDemoSet("no apt here to fetch the demo's pictures with; run: make demo SOURCE=folder")
    say(f"Fetching Debian's package {PACKAGE}: 161 MB of captioned pictures, kept in {folder}", None)
    folder.mkdir(parents=True, exist_ok=True)
    if not _run(["apt-get", "download", PACKAGE], folder) and not (
        _run(["apt-get", "update"], folder) and _run(["apt-get", "download", PACKAGE], folder)
    ):
        raise NoDemoSet(
            f"apt-get could not download {PACKAGE}; run `apt-get update` as root once, "
            "or use your own pictures: make demo SOURCE=folder"
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


def searches(folder: Path) -> list[Query]:
    """Return searches of a folder that is not known: by word, and by its first picture."""
    from storage.records import Record
    from storage.source import read_source

    first = next(row for row in read_source(folder) if isinstance(row, Record) and row.image)
    picture = Path(first.image or "")
    return [
        Query(text="a person", limit=5),
        Query(text="something green", limit=5),
        Query(text="food", find="texts", limit=5),
        Query(image=picture, find="texts", limit=5),
        Query(image=picture, find="images", limit=5),
    ]


def heading(query: Query) -> str:
    """Return what a search looks for, in words."""
    what = "Pictures" if query.find == "images" else "Texts"
    return f"{what} for {query.text!r}" if query.text else f"{what} for the picture {query.image}"


def command(query: Query) -> str:
    """Return the command that runs the same search."""
    asked = shlex.quote(query.text) if query.text else f"--image {shlex.quote(str(query.image))}"
    return f"sightline search {asked} --find {query.find} --limit {query.limit}"


def write_gallery(deps: Deps, settings: Settings, query: Query) -> Path:
    """Write the page of a larger search than the terminal shows; return where it is."""
    page = settings.home / "demo" / "gallery.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    larger = Query(query.text, query.image, query.find, limit=24)
    page.write_text(render(gallery_page(deps, search(deps, larger))), encoding="utf-8")
    return page


def say(title: str, as_command: str | None) -> None:
    """Print a heading, and the command that does the same."""
    tables.show(Text(f"\n{title}", style="bold"))
    if as_command:
        tables.show(Text(f"$ {as_command}", style="dim"))


def _run(arguments: Sequence[str], folder: Path) -> bool:
    return subprocess.run(arguments, cwd=folder, stdout=subprocess.DEVNULL, check=False).returncode == 0
