"""Define the input and the result of a training."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from embedding.training.losses import LossName
from embedding.training.splits import Split, SplitName
from embedding.training.trainer import TrainedPart, TrainingOptions, TrainingResult, options_of
from flows.datasets.test_sets import read_lines


@dataclass(frozen=True, slots=True)
class TrainingSpec:
    """Describe one training: its options, its data and its base model."""

    options: TrainingOptions = field(default_factory=TrainingOptions)
    split: Split = field(default_factory=Split)
    model: str | None = None
    """The base model; None for the active one."""

    hard_negatives: int = 0
    """Mined negatives per pair."""

    judgments: Path | None = None
    """A file of relevance judgments to train on as well."""


def training_spec(
    *,
    model: str | None = None,
    what: TrainedPart = "head",
    losses: Mapping[LossName, float] | None = None,
    held_out: float = 0.2,
    held_out_keys: Path | None = None,
    judgments: Path | None = None,
    hard_negatives: int = 0,
    epochs: int | None = None,
    batch_size: int = 64,
    learning_rate: float | None = None,
    seed: int = 0,
) -> TrainingSpec:
    """Build the spec of a training from the options of `sightline finetune`.

    Args:
        losses: their weights; None for InfoNCE alone.
        held_out: share of the images that no training sees, in [0, 1).
        held_out_keys: a file with the keys of the held-out images instead, one a line.
        epochs, learning_rate: None for the defaults of `what`.

    Raises:
        OSError, UnicodeDecodeError: `held_out_keys` cannot be read.
    """
    keys = None if held_out_keys is None else read_lines(held_out_keys)
    options = options_of(what, losses, epochs, batch_size, learning_rate, seed)
    return TrainingSpec(options, Split(seed, held_out, keys=keys), model, hard_negatives, judgments)


@dataclass(frozen=True, slots=True)
class Candidate:
    """Represent a fine-tuned model."""

    name: str
    folder: Path
    fingerprint: str
    parent: str
    """Fingerprint of the base model."""

    pairs: dict[SplitName, int]
    trained: TrainingResult
    before: dict[str, dict[str, float]]
    """Metrics of the base model on the held-out pairs, by direction."""

    after: dict[str, dict[str, float]]
    seconds: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"folder": str(self.folder)}
