"""Fine-tune a model with sentence-transformers' trainer."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from transformers import EarlyStoppingCallback, PreTrainedModel, PrinterCallback, TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.utils.logging import set_verbosity_error

from embedding.encoders.head import PictureHead
from embedding.evaluation.metrics import best_of_groups, retrieval_figures, single_answers, target_ranks
from embedding.training.batches import Batch, NoPairs, PairRow
from embedding.training.losses import Groups, LossName, PairLoss

TrainedPart = Literal["head", "lora", "all"]
Collate = Callable[[Sequence[PairRow]], Batch]

EPOCHS: dict[TrainedPart, int] = {"head": 40, "lora": 5, "all": 3}
LEARNING_RATES: dict[TrainedPart, float] = {"head": 3e-4, "lora": 2e-4, "all": 2e-5}
INFONCE: Mapping[LossName, float] = {"infonce": 1.0}
MAX_STEPS_BETWEEN_CHECKPOINTS = 500
METRIC = "recall@10"
MAX_MEASURED_PAIRS = 10_000
"""Pairs, which are all compared with each other in memory."""

STATE = "trained.safetensors"


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """Store the options of a training."""

    what: TrainedPart = "head"
    losses: Mapping[LossName, float] = field(default_factory=lambda: INFONCE)
    epochs: int = EPOCHS["head"]
    batch_size: int = 64
    learning_rate: float = LEARNING_RATES["head"]
    patience: int = 5
    """Validations without improvement in a row before training stops."""

    seed: int = 0

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def options_of(
    what: TrainedPart,
    losses: Mapping[LossName, float] | None = None,
    epochs: int | None = None,
    batch_size: int = 64,
    learning_rate: float | None = None,
    seed: int = 0,
) -> TrainingOptions:
    """Return training options; None takes the default of the trained part."""
    return TrainingOptions(
        what,
        losses or INFONCE,
        epochs or EPOCHS[what],
        batch_size,
        learning_rate or LEARNING_RATES[what],
        seed=seed,
    )


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """Store the result of a training."""

    steps: int
    best: float
    """Recall@10 on the validation split, the mean of both directions."""

    stopped_early: bool


def fine_tune(
    model: SentenceTransformer,
    rows: Dataset,
    validation: Dataset,
    collate: Collate,
    folder: Path,
    options: TrainingOptions,
    *,
    advance: Callable[[int, int], None] = lambda _done, _of: None,
) -> TrainingResult:
    """Train the weights of `model` that require gradients; keep the best ones.

    A killed training resumes from its last checkpoint in `folder`, with the same random numbers.

    Args:
        rows: pairs to learn from, with the columns of `Row`.
        validation: pairs that decide when training stops.
        collate: turns rows into a batch.
        folder: for checkpoints and TensorBoard's logs.
        advance: called after each step with the numbers of steps done and in all.
    """
    set_verbosity_error()  # it warns about its own checkpoints
    steps_an_epoch = -(-len(rows) // options.batch_size)
    interval = min(steps_an_epoch, MAX_STEPS_BETWEEN_CHECKPOINTS)
    on_gpu = model.device.type == "cuda"
    bfloat16 = on_gpu and torch.cuda.is_bf16_supported()
    arguments = Arguments(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        warmup_steps=0.05,  # below 1 a share of all steps
        seed=options.seed,
        data_seed=options.seed,
        bf16=bfloat16,
        fp16=on_gpu and not bfloat16,
        use_cpu=not on_gpu,
        dataloader_pin_memory=False,  # a batch is on the model's device already
        eval_strategy="steps",
        eval_steps=interval,
        save_strategy="steps",
        save_steps=interval,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{METRIC}",
        greater_is_better=True,
        logging_steps=min(10, interval),
        report_to="none",
        disable_tqdm=True,
    )
    loss = PairLoss(model, options.losses)
    writer = SummaryWriter(str(folder / "runs"))
    with _same_configuration(model):
        trainer = PairTrainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            loss=loss,
            evaluator=ValidationRecall(validation, collate, options.batch_size),
            data_collator=Collator(collate),
            callbacks=[
                EarlyStoppingCallback(early_stopping_patience=options.patience),
                TensorBoardCallback(writer),
                ProgressCallback(advance),
            ],
        )
        trainer.remove_callback(PrinterCallback)
        last = last_checkpoint(folder / "checkpoints")
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    model.eval()
    state = trainer.state
    return TrainingResult(
        state.global_step, float(state.best_metric or 0.0), state.global_step < state.max_steps
    )


@contextmanager
def _same_configuration(model: nn.Module) -> Iterator[None]:
    """Restore the configurations of a model: they are part of its fingerprint."""
    configs = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    before = [dict(vars(config)) for config in configs]
    yield
    for config, values in zip(configs, before, strict=True):
        vars(config).clear()
        vars(config).update(values)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the latest complete checkpoint, and remove incomplete ones."""
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))  # written last
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
        else:
            whole.append(checkpoint)
    return max(whole, key=lambda checkpoint: int(checkpoint.name.partition("-")[2]), default=None)


@dataclass
class Collator:
    """Collate rows into batches for the trainer."""

    collate: Collate
    valid_label_columns: tuple[str, ...] = ()

    def __call__(self, rows: Sequence[PairRow]) -> Batch:
        """Return a batch, empty if all its pairs have been deleted."""
        try:
            return self.collate(rows)
        except NoPairs:
            return {"towers": [[], []], "text_groups": torch.empty(0), "image_groups": torch.empty(0)}


class PairTrainer(SentenceTransformerTrainer):
    """Train on losses over both towers; a checkpoint holds only trained weights."""

    def compute_loss(self, *arguments: Any, **_: Any) -> Tensor:
        batch: Any = arguments[1]  # after the model, which the loss also holds
        if not len(batch["text_groups"]):
            return self._nothing()
        return self._pair_loss(batch["towers"], Groups(batch["text_groups"], batch["image_groups"]))

    def __init__(self, loss: PairLoss, **arguments: Any) -> None:
        super().__init__(loss=loss, **arguments)
        self._pair_loss: Callable[..., Tensor] = loss

    def _nothing(self) -> Tensor:
        """Return a loss of zero, without gradients."""
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        return torch.stack([weight.sum() for weight in trained]).sum() * 0.0

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Add none: a candidate has a model card of its own."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ARG002
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained_state(self.model), folder / STATE)

    def _load_from_checkpoint(self, checkpoint_path: str, *_: Any) -> None:
        state = load_file(Path(checkpoint_path, STATE), device=str(self.model.device))
        self.model.load_state_dict(state, strict=False)  # the rest is as it was

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is not None:
            self._load_from_checkpoint(self.state.best_model_checkpoint)


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights and buffers that training may change."""
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    return {
        name: tensor.detach().cpu().clone()
        for name, tensor in model.state_dict().items()
        if name not in frozen
    }


class ProgressCallback(TrainerCallback):  # type: ignore[misc]  # its types are not read
    """Report the progress of a training."""

    def __init__(self, advance: Callable[[int, int], None]) -> None:
        self._advance = advance

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self._advance(state.global_step, state.max_steps)


class ValidationRecall(BaseEvaluator):
    """Evaluate recall@10 on the validation split, the mean of both directions."""

    def __init__(self, rows: Dataset, collate: Collate, batch_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rows, self._collate, self._batch_size = rows, collate, batch_size
        self.primary_metric = METRIC

    def __call__(self, model: Any, *_: Any, **__: Any) -> dict[str, float]:
        found = measure(model, self._rows, self._collate, self._batch_size)
        return {METRIC: sum(figures[METRIC] for figures in found.values()) / len(found)}


@torch.no_grad()
def measure(
    model: SentenceTransformer, rows: Dataset, collate: Collate, batch_size: int
) -> dict[str, dict[str, float]]:
    """Return the metrics of the first ten thousand pairs, by direction.

    Raises:
        NoPairs: there are pairs, and all have been deleted.
    """
    many = min(len(rows), MAX_MEASURED_PAIRS)
    if not many:
        return {}
    embed = PairLoss(model, {}).embed
    texts, images, groups = [], [], []
    was_training = model.training
    model.eval()
    for start in range(0, many, batch_size):
        try:
            batch = collate([rows[place] for place in range(start, min(start + batch_size, many))])
        except NoPairs:
            continue
        own = len(batch["text_groups"])
        text_rows, image_rows = (
            torch.cat([embed(batch_to_device(chunk, model.device)) for chunk in tower])
            for tower in batch["towers"]
        )
        texts.append(text_rows.cpu())
        images.append(image_rows[:own].cpu())
        groups.append(batch["image_groups"][:own])
    model.train(was_training)
    if not texts:
        raise NoPairs("no pair is left; was the source deleted meanwhile?")
    return figures_of(torch.cat(texts), torch.cat(images), torch.cat(groups))


def figures_of(texts: Tensor, images: Tensor, groups: Tensor) -> dict[str, dict[str, float]]:
    """Return the metrics of both directions, as an evaluation defines them.

    From text to image each text is a query. From image to text each image is one, and ranks the groups by
    their best text.

    Args:
        texts: shape (n, dim), unit rows.
        images: shape (n, dim), unit rows.
        groups: shape (n,): equal numbers for the same image.
    """
    _, own = torch.unique(groups, return_inverse=True)
    many = len(own)
    first = torch.full((int(own.max()) + 1,), many).scatter_reduce(0, own, torch.arange(many), "amin")
    forth = target_ranks((texts @ images[first].T).numpy(), own.tolist())
    order = torch.argsort(own, stable=True)
    starts = torch.searchsorted(own[order], torch.arange(len(first))).tolist()
    back = target_ranks(best_of_groups((images[first] @ texts[order].T).numpy(), starts), range(len(first)))
    return {
        "text_to_image": retrieval_figures(single_answers(forth)),
        "image_to_text": retrieval_figures(single_answers(back)),
    }


def head_alone(model: SentenceTransformer, head: PictureHead) -> SentenceTransformer:
    """Return a model of `head` alone, for outputs of frozen towers."""
    return SentenceTransformer(modules=[head], device=str(model.device))
