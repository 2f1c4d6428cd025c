"""Evaluate and fine-tune models."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.cli.options import (
    EXISTING_FILE,
    Percent,
    as_json_option,
    existing_settings,
    print_out,
    run_job,
)
from flows.config.settings import load_settings, split_list

if TYPE_CHECKING:
    from embedding.training.losses import LossName
    from embedding.training.trainer import TrainedPart

LOSS_NAMES = ("infonce", "triplet-semi-hard", "triplet-batch-hard", "contrastive", "multi-similarity")
"""The losses of `embedding.training.losses`, which takes seconds to import."""


@click.command(short_help="Measure how well texts and images find each other.")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="M",
    help="A model or a collection; others are compared with the first.  [default: the active one]",
)
@click.option("--keys", type=EXISTING_FILE, help="Only records with these keys, a line each.")
@click.option("--held-out", is_flag=True, help="Only records that no model was trained on.")
@click.option(
    "--manifest",
    type=click.Path(exists=True, path_type=Path),
    help="A manifest or folder of other records; none is ingested.",
)
@click.option("--judgments", type=EXISTING_FILE, help="JSON lines of query or image, key and relevance.")
@click.option(
    "--langs", metavar="L,…|all", help="Captions in these languages instead of those that are embedded."
)
@click.option("--by", multiple=True, metavar="FIELD", help="Break the figures down by this metadata field.")
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
    of different gallery sizes cannot be compared; several models get the same queries.
    """
    if sum((keys is not None, held_out, manifest is not None, judgments is not None)) > 1:
        raise click.UsageError("give one of --keys, --held-out, --manifest and --judgments")
    settings = existing_settings() if manifest is None else load_settings()
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


class WeightedLoss(click.ParamType[tuple[str, float]]):
    """Parse a loss with an optional weight: `infonce`, `contrastive=0.5`."""

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
    """Parse a share of the images, or a file of keys."""

    name = "held-out"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> "float | Path":
        if Path(value).is_file():
            return Path(value)
        share = Percent().convert(value, param, ctx) if str(value).endswith("%") else None
        if share is None or share >= 1:
            self.fail(f"{value!r} is no file, and no share below 100% such as 20%", param, ctx)
        return share


@click.command(short_help="Train a model on the stored captioned images.")
@click.option("--model", metavar="M", help="Model to start from.  [default: the active model]")
@click.option(
    "--train",
    "what",
    type=click.Choice(["head", "lora", "all"]),
    default="head",
    show_default=True,
    help="Trained weights: a head behind the image tower (cheap), low-rank updates, or all.",
)
@click.option(
    "--loss",
    "losses",
    type=WeightedLoss(),
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
    help="Images held out of training: a share, or those of the keys in FILE, a line each.",
)
@click.option(
    "--judgments", type=EXISTING_FILE, help="Train on these as well: JSON lines of query, key, relevance."
)
@click.option(
    "--hard-negatives",
    type=click.IntRange(0, 32),
    default=0,
    show_default=True,
    help="Hard negatives to mine per caption.",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Most epochs.  [default: head 40, lora 5, all 3]")
@click.option(
    "--batch-size", type=click.IntRange(min=2), default=64, show_default=True, help="Pairs per step."
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Peak learning rate.  [default: head 3e-4, lora 2e-4, all 2e-5]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the split and of the training.")
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
    """Train a candidate on the stored images and their embedded captions.

    The candidate is a folder below models in the data directory, with its card and figures. Near duplicates
    always share a side of the train/validation/held-out split. The same command resumes a training that was
    killed. Searches use the candidate only after `sightline promote` and `sightline reindex`.
    """
    settings = existing_settings()
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
