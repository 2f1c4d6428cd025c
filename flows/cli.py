"""The command line: read arguments, call one thing, print, exit."""

import json
import logging
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import click
from rich.console import Console
from rich.logging import RichHandler

from flows.settings import load_settings, prepare_prefect, split_list

if TYPE_CHECKING:
    from rich.console import RenderableType

    from embedding.losses import LossName
    from embedding.train import What


LOSS_NAMES = ("infonce", "triplet-semi-hard", "triplet-batch-hard", "contrastive", "multi-similarity")
"""What `embedding.losses` has, which takes seconds to import."""

EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class OneLineErrors(click.Group):
    """A group whose commands end in one line that names the thing and the remedy, not in a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if ctx.params["debug"]:
                raise
            from flows.errors import explain

            raise click.ClickException(explain(error)) from error


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show tracebacks and what Prefect logs.")
@click.version_option(package_name="sightline", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context, debug: bool) -> None:
    """Find pictures with words, and words with pictures.

    Without any setting everything lives in .sightline in the current folder and needs no server. Settings
    are environment variables that start with SIGHTLINE_; the README lists them.
    """
    ctx.obj = debug
    _log_to_stderr(debug)


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")


@main.command(short_help="Take in a folder of pictures, or a manifest.")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--name", help="What to call the source.  [default: the folder's or file's name]")
@click.option(
    "--langs", metavar="L,…|all", help="Languages to embed beside texts without a tag.  [default: en]"
)
@click.option("--limit", type=click.IntRange(min=1), help="Read only the first LIMIT records.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option(
    "--delete-missing", is_flag=True, help="Delete what SOURCE had in an earlier run and has no longer."
)
@click.option("--revive", is_flag=True, help="Take in again what `sightline delete` has deleted.")
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
    revive: bool,
    as_json: bool,
) -> None:
    """Take in SOURCE: a folder of pictures, or a manifest (.jsonl, .csv, .parquet).

    Run it again to pick up changes: what has not changed costs nothing. Records that cannot be taken in are
    listed by `sightline rejects`; the run goes on without them.
    """
    if limit is not None and delete_missing:
        raise click.UsageError("--delete-missing needs the whole source; leave out --limit")
    settings = load_settings()
    from flows import intake, tables
    from flows.deps import open_catalog

    if dry_run:
        chosen = None if langs is None else split_list(langs)
        with open_catalog(settings) as engine:
            request = intake.Request(source, name, chosen, limit, delete_missing, revive)
            report = intake.dry_run(engine, settings, request)
        _print(report.as_json(), as_json, lambda: tables.of_ingest(report))
        return
    prepare_prefect(settings.home, log_level="INFO" if debug else "CRITICAL")
    from flows.ingest import ingest as ingest_flow

    try:
        report = ingest_flow(source, name, langs, limit, delete_missing, revive)
    except intake.TooManyRejects as error:
        failed = error.report
        _print(failed.as_json(), as_json, lambda: tables.of_ingest(failed))
        raise
    _print(report.as_json(), as_json, lambda: tables.of_ingest(report))


@main.command(short_help="Find pictures or texts by a text or a picture.")
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
    """Show what is closest to TEXT, to a picture, or to both together, best first.

    Scores are cosines: comparable within one search, not between models. --where takes metadata fields,
    `source` and `key`.
    """
    if text == "" or (text is None and image is None):
        raise click.UsageError("give a TEXT, --image FILE, or both")
    settings = load_settings()
    from flows import tables
    from flows.gallery import render
    from flows.search import Find, Query, gallery_page, open_search
    from flows.search import search as find_items

    default: Find = "texts" if text is None else "images"
    chosen: Find = next((known for known in get_args(Find) if known == find), default)
    query = Query(
        text,
        image,
        find=chosen,
        limit=limit,
        min_score=min_score,
        where=_pairs(where),
        oversampling=settings.qdrant.oversampling,
    )
    with open_search(settings) as deps:
        results = find_items(deps, query)
        if gallery is not None:
            gallery.write_text(render(gallery_page(deps, results, settings.limits)), encoding="utf-8")
            click.echo(f"gallery: {gallery}", err=True)
    _print(results.as_json(), as_json, lambda: tables.of_results(results))


@main.command(short_help="Delete items for good, with a receipt.")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option("--source", help="Only items of this source; without a KEY, all of them.")
@click.option("--where", multiple=True, metavar="K=V", help="Only items with this metadata; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Say how many would go, and delete nothing.")
@as_json_option
def delete(
    keys: tuple[str, ...], source: str | None, where: tuple[str, ...], dry_run: bool, as_json: bool
) -> None:
    """Delete the items with these KEYs, or of a source, or with some metadata; all that is given must hold.

    Their points go from every collection, and their pictures unless another item shares them. They stay
    deleted when their source still has them, until it is ingested with --revive. The receipt, in the
    folder `receipts` of the home, lists what went where; --json prints it.
    """
    if not keys and source is None and not where:
        raise click.UsageError("name a KEY, a --source or --where K=V: without any, it would be everything")
    settings = load_settings()
    from flows import tables
    from flows.deletes import count_selected, delete_items
    from flows.deps import open_stores
    from storage.catalog import Selection

    selection = Selection(keys, source, _pairs(where))
    with open_stores(settings) as stores:
        if dry_run:
            found = count_selected(stores, selection)
            _print({"would_delete": found}, as_json, lambda: tables.of_dry_delete(found))
            return
        receipt = delete_items(stores, selection, settings.home / "receipts", for_s=settings.retry_for_s)
    if as_json:
        click.echo(receipt.path.read_text("utf-8"), nl=False)
        return
    tables.show(tables.of_receipt(receipt))


@main.command(short_help="Show what is stored and how the last runs went.")
@as_json_option
def status(as_json: bool) -> None:
    """Show what is stored, what is open, and how the last runs went."""
    settings = load_settings()
    from flows import tables
    from flows.status import read_status

    now = read_status(settings)
    _print(now.as_json(), as_json, lambda: tables.of_status(now))


class Percent(click.ParamType[float]):
    """A share such as `5%`; the sign may be left out."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            share = float(str(value).removesuffix("%")) / 100
        except ValueError:
            self.fail(f"{value!r} is no percentage; write one such as 5%", param, ctx)
        if not 0 <= share <= 1:
            self.fail(f"{value!r} is not between 0% and 100%", param, ctx)
        return share


max_delete_option = click.option(
    "--max-delete", type=Percent(), default="5%", show_default=True, help="Refuse to delete a larger share."
)
yes_option = click.option("--yes", is_flag=True, help="Delete however many there are.")


@main.command(short_help="Compare Postgres and Qdrant, and mend what differs.")
@click.option("--repair", is_flag=True, help="Mend what differs, and compare again until nothing does.")
@max_delete_option
@yes_option
@as_json_option
@click.pass_context
def reconcile(ctx: click.Context, repair: bool, max_delete: float, yes: bool, as_json: bool) -> None:
    """Compare Postgres and Qdrant record by record: id, content and model; and look for lost pictures.

    Without --repair nothing is changed. Exit code 1 says that they differ, or that not all could be mended;
    `sightline status` says it from then on.
    """
    settings = load_settings()
    from flows import reconcile as stores_compared
    from flows import tables
    from flows.deps import open_stores, with_model
    from flows.progress import progress_bar
    from storage import catalog

    with open_stores(settings) as stores:
        with stores.sessions() as session:
            total = catalog.counts(session)["items"]
        with progress_bar("compare", total) as advance:
            if repair:
                deps = with_model(stores, settings)
                mended = stores_compared.repair(
                    deps, settings, max_delete=max_delete, yes=yes, advance=advance
                )
                _print(mended.as_json(), as_json, lambda: tables.of_mended(mended))
                damage = mended.after.damage
            else:
                report = stores_compared.watch(stores, settings, advance=advance)
                _print(report.as_json(), as_json, lambda: tables.of_differences(report))
                damage = report.damage
    ctx.exit(1 if damage else 0)


@main.command(short_help="List items that show the same picture.")
@click.option("--near", is_flag=True, help="Also pictures that only look alike: resized, re-encoded, edited.")
@as_json_option
def duplicates(near: bool, as_json: bool) -> None:
    """List groups of items whose pictures have the same bytes.

    With --near, also pictures that look alike, told by a perceptual hash; the first time that reads every
    picture, and later only new ones.
    """
    settings = load_settings()
    from flows import tables
    from flows.deps import open_stores
    from flows.duplicates import look_alikes, same_bytes
    from flows.progress import progress_bar

    with open_stores(settings) as stores:
        if near:
            with progress_bar("look at pictures") as advance:
                groups = look_alikes(stores, settings.limits, advance=advance)
        else:
            groups = same_bytes(stores)
    _print(groups.as_json(), as_json, lambda: tables.of_groups(groups))


@main.command(short_help="Write a backup of everything.")
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
    """Write Postgres, the index, its models and the pictures below TARGET, a folder or an fsspec URL.

    Each backup gets a folder of its own, with checksums; pictures are kept once for all of them.
    """
    settings = load_settings()
    from flows import tables
    from flows.backup import backup as write_backup
    from flows.deps import open_stores
    from flows.models import models_folder
    from flows.progress import progress_bar

    with open_stores(settings.with_time()) as stores, progress_bar("copy pictures") as advance:
        made = write_backup(
            stores,
            target,
            settings.home,
            models=models_folder(settings),
            pictures=pictures,
            for_s=settings.retry_for_s,
            advance=advance,
        )
    _print(made.as_json(), as_json, lambda: tables.of_backup(made))


@main.command(short_help="Fill an empty home from a backup.")
@click.argument("location")
@as_json_option
@click.pass_context
def restore(ctx: click.Context, location: str, as_json: bool) -> None:
    """Check the backup at LOCATION, restore it into an empty home or empty servers, and compare the stores.

    LOCATION is one backup, or the folder of several: then the latest. Exit code 1 says that the restored
    stores differ.
    """
    settings = load_settings()
    from flows import tables
    from flows.progress import progress_bar
    from flows.restore import restore as fill

    with progress_bar("check pictures") as advance:
        restored = fill(settings.with_time(), location, advance=advance)
    _print(restored.as_json(), as_json, lambda: tables.of_restored(restored))
    ctx.exit(1 if restored.report.damage else 0)


@main.command(short_help="Move the home's embedded stores into servers.")
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
    from flows import tables
    from flows.move import move_to_servers
    from flows.progress import stages

    with stages("move") as advance:
        moved = move_to_servers(settings, advance=advance)
    _print(moved.as_json(), as_json, lambda: tables.of_moved(moved))
    ctx.exit(1 if moved.report.damage else 0)


@main.command(short_help="Remove what nothing needs any more.")
@click.option("--dry-run", is_flag=True, help="Count them, and remove nothing.")
@max_delete_option
@yes_option
@as_json_option
def purge(dry_run: bool, max_delete: float, yes: bool, as_json: bool) -> None:
    """Remove kept pictures that no item has, files and scratch folders that a crash left, and collections
    that searches have not used for SIGHTLINE_KEEP_RETIRED_DAYS.
    """
    settings = load_settings()
    from flows import tables
    from flows.deps import open_stores
    from flows.purge import purge as remove_orphans

    with open_stores(settings) as stores:
        purged = remove_orphans(stores, settings, max_delete=max_delete, yes=yes, dry_run=dry_run)
    _print(purged.as_json(), as_json, lambda: tables.of_purge(purged, dry_run=dry_run))


reason_option = click.option("--reason", metavar="CODE", help="Only rejects with this reason code.")
of_source_option = click.option("--source", metavar="NAME", help="Only rejects of this source.")


@main.group(short_help="List what could not be taken in, and why.", invoke_without_command=True)
@reason_option
@of_source_option
@as_json_option
@click.pass_context
def rejects(ctx: click.Context, reason: str | None, source: str | None, as_json: bool) -> None:
    """List the records that could not be taken in, each with its reason and what to do.

    Once they are mended at their source, `sightline rejects retry` tries just those again.
    """
    if ctx.invoked_subcommand is not None:
        if reason or source or as_json:
            raise click.UsageError(f"put the options after {ctx.invoked_subcommand!r}")
        return
    settings = load_settings()
    from sqlalchemy.orm import Session

    from flows import tables
    from flows.deps import open_catalog
    from storage.runs import open_rejects

    with open_catalog(settings) as engine, Session(engine) as session:
        found = open_rejects(session, reason=reason, source=source)
    _print({"rejects": [reject.as_json() for reject in found]}, as_json, lambda: tables.of_rejects(found))


@rejects.command(short_help="Try again what could not be taken in.")
@reason_option
@of_source_option
@as_json_option
@click.pass_context
def retry(ctx: click.Context, reason: str | None, source: str | None, as_json: bool) -> None:
    """Read the sources of open rejects again, and try those records alone.

    What passes is taken in and resolved. Exit code 1 says that a source could not be read.
    """
    settings = load_settings()
    from flows import tables
    from flows.deps import open_stores, with_model
    from flows.retry import retry_rejects
    from storage.runs import open_rejects

    with open_stores(settings) as stores:
        with stores.sessions() as session:
            found = open_rejects(session, reason=reason, source=source)
        if found:  # or there is no need for the model
            done = retry_rejects(with_model(stores, settings), settings, reason=reason, source=source)
        else:
            done = []
    _print({"sources": [one.as_json() for one in done]}, as_json, lambda: tables.of_retries(done))
    ctx.exit(1 if any(one.problem for one in done) else 0)


@main.command(short_help="Measure how well texts and pictures find each other.")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="M",
    help="A model or a collection; others are compared with the first.  [default: the active one]",
)
@click.option("--keys", type=EXISTING_FILE, help="Only records with these keys, a line each.")
@click.option("--held-out", is_flag=True, help="Only what none of the models has learned from.")
@click.option(
    "--manifest",
    type=click.Path(exists=True, path_type=Path),
    help="A manifest or folder of other records, none of which is taken in.",
)
@click.option("--judgments", type=EXISTING_FILE, help="JSON lines of query or image, key and relevance.")
@click.option(
    "--langs", metavar="L,…|all", help="Captions in these languages instead of those that are embedded."
)
@click.option("--by", multiple=True, metavar="FIELD", help="Also by the values of this metadata field.")
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw recall against k, as a PNG."
)
@as_json_option
def evaluate(
    models: tuple[str, ...],
    keys: Path | None,
    held_out: bool,
    manifest: Path | None,
    judgments: Path | None,
    langs: str | None,
    by: tuple[str, ...],
    plot: Path | None,
    as_json: bool,
) -> None:
    """Measure how well captions find their pictures, and pictures their captions.

    Text to image counts each caption as a query. Image to text ranks items by their best caption. Figures
    of different gallery sizes cannot be compared; several models are asked the same queries.
    """
    if sum((keys is not None, held_out, manifest is not None, judgments is not None)) > 1:
        raise click.UsageError("give one of --keys, --held-out, --manifest and --judgments")
    settings = load_settings()
    from flows import tables
    from flows.deps import open_stores
    from flows.evaluate import evaluate as measure
    from flows.progress import stages
    from flows.testsets import Question, chosen_set

    chosen = None if langs is None else split_list(langs)
    question = Question(keys, held_out, manifest, judgments, chosen)
    with open_stores(settings) as stores, stages("evaluate") as advance:
        test_set = chosen_set(stores, settings, question, models)
        result = measure(stores, settings, models, test_set, by=by, advance=advance)
    if plot is not None:
        from flows.plot import write_plot

        write_plot(result, plot)
        click.echo(f"plot: {plot}", err=True)
    _print(result.as_json(), as_json, lambda: tables.of_evaluation(result))


class Weighted(click.ParamType[tuple[str, float]]):
    """A loss, with a weight if it is to be summed with others: `infonce`, `contrastive=0.5`."""

    name = "loss"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        loss, _, weight = str(value).partition("=")
        try:
            many = float(weight or 1)
        except ValueError:
            self.fail(f"{value!r}: the weight is no number; write such as contrastive=0.5", param, ctx)
        if loss not in LOSS_NAMES:
            self.fail(f"{loss!r} is none of {', '.join(LOSS_NAMES)}", param, ctx)
        if not 0 < many < float("inf"):
            self.fail(f"{value!r}: a weight is above 0", param, ctx)
        return loss, many


class HeldOut(click.ParamType["float | Path"]):
    """A share of the pictures, or a file of keys."""

    name = "held-out"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> "float | Path":
        if Path(value).is_file():
            return Path(value)
        share = Percent().convert(value, param, ctx) if str(value).endswith("%") else None
        if share is None or share >= 1:
            self.fail(f"{value!r} is no file, and no share below 100% such as 20%", param, ctx)
        return share


@main.command(short_help="Train a model on the captioned pictures that are stored.")
@click.option("--model", metavar="M", help="What to begin with.  [default: the active model]")
@click.option(
    "--train",
    "what",
    type=click.Choice(["head", "lora", "all"]),
    default="head",
    show_default=True,
    help="What is trained: a head behind the pictures' tower (cheap), low-rank updates, or all weights.",
)
@click.option(
    "--loss",
    "losses",
    type=Weighted(),
    multiple=True,
    metavar="NAME[=WEIGHT]",
    help=f"One of {', '.join(LOSS_NAMES)}; repeated, their weighted sum.  [default: infonce]",
)
@click.option(
    "--held-out",
    type=HeldOut(),
    default="20%",
    show_default=True,
    metavar="SHARE|FILE",
    help="Pictures that no training sees: a share, or those of the keys in FILE, a line each.",
)
@click.option(
    "--judgments", type=EXISTING_FILE, help="Train on these as well: JSON lines of query, key, relevance."
)
@click.option(
    "--hard-negatives",
    type=click.IntRange(0, 32),
    default=0,
    show_default=True,
    help="Pictures a text that the index has close to it and that do not belong to it.",
)
@click.option(
    "--epochs", type=click.IntRange(min=1), help="At most so many.  [default: head 40, lora 5, all 3]"
)
@click.option("--batch-size", type=click.IntRange(min=2), default=64, show_default=True, help="Pairs a step.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    help="The highest.  [default: head 3e-4, lora 2e-4, all 2e-5]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the split and of the training.")
@as_json_option
@click.pass_obj
def finetune(
    debug: bool,
    model: str | None,
    what: "What",
    losses: "tuple[tuple[LossName, float], ...]",
    held_out: float | Path,
    judgments: Path | None,
    hard_negatives: int,
    epochs: int | None,
    batch_size: int,
    learning_rate: float | None,
    seed: int,
    as_json: bool,
) -> None:
    """Train a candidate: a model of its own in the home's folder models, with its card and figures.

    It learns from the stored pictures and their embedded captions; near duplicates are never on both sides
    of the split. A training that was killed goes on when the same command is run again. Nothing searches
    with the candidate before `sightline promote` and `sightline reindex`.
    """
    settings = load_settings()
    prepare_prefect(settings.home, log_level="INFO" if debug else "CRITICAL")
    from flows import tables
    from flows.finetune import finetune as finetune_flow

    share, keys = (held_out, None) if isinstance(held_out, float) else (0.0, held_out)
    candidate = finetune_flow(
        model=model,
        what=what,
        losses=dict(losses) or None,
        held_out=share,
        held_out_keys=keys,
        judgments=judgments,
        hard_negatives=hard_negatives,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
    )
    _print(candidate.as_json(), as_json, lambda: tables.of_candidate(candidate))


@main.command(short_help="List models, where they come from and what became of them.")
@as_json_option
def models(as_json: bool) -> None:
    """List all models that have made vectors here, were trained here or were judged here, newest first."""
    settings = load_settings()
    from sqlalchemy.orm import Session

    from flows import tables
    from flows.deps import open_catalog
    from storage.lives import lives

    with open_catalog(settings) as engine, Session(engine) as session:
        found = lives(session)
    _print({"models": [one.as_json() for one in found]}, as_json, lambda: tables.of_models(found))


@main.command(short_help="Decide whether searches may use a candidate.")
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
    from flows import tables
    from flows.deps import open_stores
    from flows.gate import promote as decide
    from flows.progress import stages

    with open_stores(settings) as stores, stages("promote") as advance:
        decision = decide(stores, settings, model, outside=outside, force=force, advance=advance)
    _print(decision.as_json(), as_json, lambda: tables.of_decision(decision))
    ctx.exit(0 if decision.promoted else 1)


@main.command(short_help="Have searches use another model.")
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
    prepare_prefect(settings.home, log_level="INFO" if debug else "CRITICAL")
    from flows import tables
    from flows.reindex import reindex as reindex_flow

    switched = reindex_flow(model, force, yes, max_missing)
    _print(switched.as_json(), as_json, lambda: tables.of_switched(switched))


@main.command(short_help="Have searches use the model they used before.")
@as_json_option
def rollback(as_json: bool) -> None:
    """Have searches go back to the collection they used before, at once; then fill in what it lacks."""
    settings = load_settings()
    from flows import tables
    from flows.deps import open_stores
    from flows.progress import stages
    from flows.rebuild import rollback as go_back

    with open_stores(settings) as stores, stages("rollback") as advance:
        switched = go_back(stores, settings, advance=advance)
    _print(switched.as_json(), as_json, lambda: tables.of_switched(switched))


@main.command(short_help="Fetch captioned pictures, ingest, search, measure.")
@click.argument("source", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.pass_obj
def demo(debug: bool, source: Path | None) -> None:
    """Fetch a captioned set of pictures (or take the folder SOURCE), ingest it, search it, measure it."""
    settings = load_settings()
    prepare_prefect(settings.home, log_level="INFO" if debug else "CRITICAL")
    from flows.demo import run

    run(settings, source)


@main.command(short_help="Run the flows on their schedules.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=4200,
    show_default=True,
    help="Where our own Prefect server listens, on this machine alone.",
)
@click.option("--json", "as_json", is_flag=True, help="Say what runs when as one line of JSON.")
@click.pass_obj
def serve(debug: bool, port: int, as_json: bool) -> None:
    """Run ingest, evaluate, reconcile, finetune, backup and purge on their schedules, until a signal.

    The schedules are settings, SIGHTLINE_SCHEDULES__INGEST and so on: crons in UTC, or off. None overlaps
    with itself; all can be paused and started by hand in Prefect's UI, and what is paused there stays so.
    With PREFECT_API_URL set that server is used; otherwise one is started here, and ends with this command.
    """
    settings = load_settings()
    prepare_prefect(settings.home, log_level="DEBUG" if debug else "INFO")
    from flows import tables
    from flows.served import Served
    from flows.serving import serve as run_schedules

    def tell(served: Served) -> None:
        if as_json:
            click.echo(json.dumps(served.as_json(), default=str))
        else:
            tables.show(tables.of_served(served))

    run_schedules(settings, port, tell)


console_host_option = click.option(
    "--host", help="Where the console listens.  [default: SIGHTLINE_CONSOLE__HOST, 127.0.0.1]"
)
console_port_option = click.option(
    "--port", type=click.IntRange(1, 65535), help="And its port.  [default: SIGHTLINE_CONSOLE__PORT, 8080]"
)


@main.command(short_help="Run everything: the stores, the schedules, the console.")
@console_host_option
@console_port_option
@click.option(
    "--prefect-port",
    type=click.IntRange(1, 65535),
    default=4200,
    show_default=True,
    help="Where our own Prefect server listens, on this machine alone.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How each line of the log is written, on standard error.",
)
def up(host: str | None, port: int | None, prefect_port: int, log_format: str) -> None:
    """Run the home's stores, a Prefect server with the schedules, and the console, until Ctrl-C.

    Prints where each of them is. When one of them ends by itself all end, with code 1, so that a service
    manager starts them anew. Where URLs of servers are set, those are used.
    """
    settings = load_settings().listening_at(host, port)
    from flows import tables
    from flows.up import Line, Running
    from flows.up import up as run_everything

    def say(line: Line) -> None:
        click.echo(line.as_json() if log_format == "json" else line.as_text(), err=True)

    def tell(running: Running) -> None:
        tables.show(tables.of_running(running))

    run_everything(settings, prefect_port, say, tell)


@main.command(short_help="Show the console, beside the API and the metrics.")
@console_host_option
@console_port_option
@click.pass_obj
def console(debug: bool, host: str | None, port: int | None) -> None:
    """Serve pages to watch the index and to act on it, until a signal.

    On this machine alone, unless SIGHTLINE_CONSOLE__PASSWORD is set, or SIGHTLINE_CONSOLE__USER_HEADER for a
    proxy that signs people in. What starts flows needs `sightline serve`; `sightline up` runs both.
    """
    settings = load_settings().listening_at(host, port)
    prepare_prefect(settings.home, log_level="INFO" if debug else "CRITICAL")
    from flows.console.serve import serve as serve_console

    click.echo(f"The console is at {settings.console.url}", err=True)
    serve_console(settings)


@main.group(short_help="Make, list and revoke keys of the API.")
def keys() -> None:
    """Make, list and revoke the keys that the API and MCP over HTTP ask for."""


@keys.command("create", short_help="Make a key, and print it once.")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(["read", "write", "admin"]),
    multiple=True,
    required=True,
    help="What it may do; may be repeated. write has no read in it, admin has all.",
)
@click.option("--days", type=click.IntRange(min=1), help="It ends after so many.  [default: never]")
@as_json_option
def create_key(
    name: str, scopes: "tuple[Literal['read', 'write', 'admin'], ...]", days: int | None, as_json: bool
) -> None:
    """Make a key called NAME, and print it: it cannot be shown again, for only its hash is kept.

    read searches and looks, write sends and deletes records, admin does everything and alone deletes whole
    sources.
    """
    settings = load_settings()
    from sqlalchemy.orm import Session

    from flows import tables
    from flows.deps import open_catalog
    from storage.keys import create

    with open_catalog(settings) as engine, Session(engine) as session, session.begin():
        key, made = create(session, name, scopes, lasts=None if days is None else timedelta(days=days))
    _print({"key": key} | made.as_json(), as_json, lambda: tables.of_new_key(key, made))


@keys.command("list", short_help="List keys: what they may do, and when they were last used.")
@as_json_option
def list_keys(as_json: bool) -> None:
    """List all keys, those in use first; when one was last used is known to the minute."""
    settings = load_settings()
    from sqlalchemy.orm import Session

    from flows import tables
    from flows.deps import open_catalog
    from storage.keys import every

    with open_catalog(settings) as engine, Session(engine) as session:
        found = every(session)
    _print({"keys": [one.as_json() for one in found]}, as_json, lambda: tables.of_keys(found))


@keys.command("revoke", short_help="Make a key useless, at once.")
@click.argument("name")
def revoke_key(name: str) -> None:
    """Make the key called NAME useless, at once; what was accepted from it is still carried out."""
    settings = load_settings()
    from sqlalchemy.orm import Session

    from flows.deps import open_catalog
    from storage.keys import revoke

    with open_catalog(settings) as engine, Session(engine) as session, session.begin():
        revoke(session, name)
    click.echo(f"{name} is revoked.")


@main.command(short_help="Serve an assistant on this machine, over MCP.")
def mcp() -> None:
    """Serve search, get and status to an assistant that started this command, on standard input and output.

    It needs no key, as it runs as whoever started it. Over HTTP, `sightline console` has the same at /mcp.
    """
    settings = load_settings()
    from flows.api.mcp import serve_on_stdio
    from flows.backend import Backend

    backend = Backend(settings)
    try:
        serve_on_stdio(backend)
    finally:
        backend.close()


@main.command(short_help="Run the home folder's servers in the foreground.")
def start() -> None:
    """Run Postgres and Qdrant of the home folder in the foreground, with their logs, until a signal.

    For a service manager: commands start both by themselves. A server that has a URL set is not started.
    Ends with code 1 if Postgres ends by itself.
    """
    settings = load_settings()
    from flows.servers import serve

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, force=True)
    serve(settings)


@main.command(short_help="Stop the home folder's servers.")
def stop() -> None:
    """Stop Postgres and Qdrant of the home folder; the next command starts them again."""
    settings = load_settings()
    from storage.embedded.postgres import stop_postgres
    from storage.embedded.qdrant.client import stop as stop_index

    # the index first: in the foreground, its end is Postgres' too
    for name, was_running in (
        ("Qdrant", stop_index(settings.home)),
        ("Postgres", stop_postgres(settings.home)),
    ):
        click.echo(f"{name} has stopped." if was_running else f"{name} was not running.")


def _log_to_stderr(debug: bool) -> None:
    """Show our own warnings, and of spans that cannot be sent; what libraries say else is for `--debug`."""
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    if debug:
        logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
        return
    logging.basicConfig(handlers=[logging.NullHandler()])
    for package in ("flows", "embedding", "storage", "opentelemetry.exporter"):
        logging.getLogger(package).addHandler(handler)


def _pairs(where: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for entry in where:
        field, equals, value = entry.partition("=")
        if not equals or not field:
            raise click.UsageError(f"--where takes K=V, not {entry!r}; for example --where category=fruit")
        pairs[field] = value
    return pairs


def _print(document: dict[str, Any], as_json: bool, table: "Callable[[], RenderableType]") -> None:
    if as_json:
        click.echo(json.dumps(document, ensure_ascii=False, indent=2, default=str))
        return
    from flows.tables import show

    show(table())


if __name__ == "__main__":
    main(prog_name="sightline")
