"""What fine-tuning gains on the demo's stamps, by loss: 200 pictures held out, the same for all.

It needs the demo's pictures, which come from Debian's packages. Each row is a training and an evaluation of
its candidate beside the model that it came from.
"""

import time
from collections.abc import Iterator
from pathlib import Path

from embedding.training.losses import LossName
from embedding.training.splits import Split
from embedding.training.trainer import TrainedPart, options_of
from flows.cli.demo import fetch_stamps
from flows.config.settings import Settings
from flows.datasets.test_sets import of_records, read_lines
from flows.evaluation.evaluate import Evaluation, evaluate
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.resources.connections import Stores, open_stores, with_model
from flows.training.finetune import train_candidate
from flows.training.spec import TrainingSpec
from tests.bench.material import Row, scratch

KEYS = Path(__file__).parents[1] / "support" / "held_out_stamps.txt"
TRAININGS: tuple[tuple[TrainedPart, dict[LossName, float], int], ...] = (
    ("head", {"infonce": 1.0}, 0),
    ("head", {"infonce": 1.0}, 4),
    ("head", {"triplet-semi-hard": 1.0}, 0),
    ("head", {"triplet-batch-hard": 1.0}, 0),
    ("head", {"contrastive": 1.0}, 0),
    ("head", {"multi-similarity": 1.0}, 0),
    ("head", {"infonce": 1.0, "multi-similarity": 0.5}, 0),
)
METRIC = "recall@10"


def run() -> Iterator[Row]:
    """Yield for each training what it took, and recall@10 before and after with the interval of the gain."""
    with scratch() as folder:
        settings = Settings(home=folder / "home")
        stamps = fetch_stamps(folder / "stamps")
        with open_stores(settings) as stores:
            ingest_source(with_model(stores, settings), settings, Request(stamps))
            for what, losses, negatives in TRAININGS:
                order = TrainingSpec(
                    options_of(what, losses), Split(keys=read_lines(KEYS)), hard_negatives=negatives
                )
                yield train(stores, settings, order)


def train(stores: Stores, settings: Settings, order: TrainingSpec) -> Row:
    start = time.perf_counter()
    candidate = train_candidate(stores, settings, order)
    seconds = time.perf_counter() - start
    held_out = of_records(stores, KEYS.name, read_lines(KEYS), None)
    found = evaluate(stores, settings, ["starter", candidate.name], held_out)
    row: Row = {
        "trained": order.options.what,
        "loss": " + ".join(f"{weight:g} {name}" for name, weight in order.options.losses.items()),
        "mined": order.hard_negatives,
        "seconds": round(seconds, 1),
    }
    return row | figures(found, "text_to_image", "t2i") | figures(found, "image_to_text", "i2t")


def figures(found: Evaluation, direction: str, short: str) -> Row:
    before, after = (
        next(one for one in model.measured if (one.direction, one.part) == (direction, None))
        for model in found.models
    )
    gain = next(one for one in found.comparisons[0].measured if one.direction == direction).figures[METRIC]
    return {
        f"{short} before": round(before.figures[METRIC].value, 3),
        f"{short} after": round(after.figures[METRIC].value, 3),
        f"{short} gain": f"{gain.low:.3f} to {gain.high:.3f}",
    }
