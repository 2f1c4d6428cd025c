"""Commands that train a model, and that measure one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.cli.options import (
    EXISTING_FILE,
    Percent,
    as_json_option,
    print_out,
    run_job,
)
from flows.config.settings import load_settings, split_list

if TYPE_CHECKING:
    from embedding.training.losses import LossName
    from embedding.training.trainer import TrainedPart

LOSS_NAMES = ("infonce", "triplet-semi-hard", "triplet-batch-hard", "contrastive", "multi-similarity")
"""What `embedding.training.losses` has, which takes seconds to import."""


@click.command(short_help="Measure how well texts and pictures find each other.")
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
    """Measure how well captions find their images, and images their captions.

    Text to image counts each caption as a query. Image to text ranks items by their best caption. Figures
    of different gallery sizes cannot be compared; several models are asked the same queries.
    """
    if sum((keys is not None, held_out, manifest is not None, judgments is not None)) > 1:
        raise click.UsageError("give one of --keys, --held-out, --manifest and --judgments")
    settings = load_settings()
    from flows.cli.tables.models import of_evaluation
    from flows.datasets.test_sets import EvaluationChoice, choose_test_set
    from flows.evaluation.evaluate import evaluate as measure
    from flows.resources.connections import open_stores
    from flows.tracking.progress import stage_bars

    chosen = None if langs is None else split_list(langs)
    question = EvaluationChoice(keys, held_out, manifest, judgments, chosen)
    with open_stores(settings) as stores, stage_bars("evaluate") as progress:
        test_set = choose_test_set(stores, settings, question, models)
        result = measure(stores, settings, models, test_set, by=by, progress=progress)
    if plot is not None:
        from flows.evaluation.recall_plot import write_plot

        write_plot(result, plot)
        click.echo(f"plot: {plot}", err=True)
    print_out(result.as_json(), as_json, lambda: of_evaluation(result))


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
    """A share of the images, or a file of keys."""

    name = "held-out"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> "float | Path":
        if Path(value).is_file():
            return Path(value)
        share = Percent().convert(value, param, ctx) if str(value).endswith("%") else None
        if share is None or share >= 1:
            self.fail(f"{value!r} is no file, and no share below 100% such as 20%", param, ctx)
        return share


@click.command(short_help="Train a model on the captioned pictures that are stored.")
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
    what: "TrainedPart",
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

    It learns from the stored images and their embedded captions; near duplicates are never on both sides
    of the split. A training that was killed goes on when the same command is run again. Nothing searches
    with the candidate before `sightline promote` and `sightline reindex`.
    """
    settings = load_settings()
    from flows.cli.tables.models import of_candidate
    from flows.orchestration.jobs import models as jobs

    share, keys = (held_out, None) if isinstance(held_out, float) else (0.0, held_out)
    candidate = run_job(
        settings,
        jobs.finetune,
        debug=debug,
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
        promote=False,
    )
    print_out(candidate.as_json(), as_json, lambda: of_candidate(candidate))
