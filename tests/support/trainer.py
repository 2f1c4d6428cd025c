"""A training that ends its process by SIGKILL after a given step."""

import os
import signal
from pathlib import Path

from embedding.training.trainer import TrainedPart, options_of
from flows.config.settings import Settings
from flows.resources.connections import open_stores
from flows.training.finetune import train_candidate
from flows.training.spec import TrainingSpec

EPOCHS = 3
BATCH_SIZE = 8


def an_order(what: TrainedPart) -> TrainingSpec:
    """Some steps over few pairs, with what is random in a training."""
    return TrainingSpec(options_of(what, epochs=EPOCHS, batch_size=BATCH_SIZE))


def train(home: Path, model: str, what: TrainedPart, last_step: int) -> None:
    def progress(stage: str, done: int, _of: int) -> None:
        if stage == "train" and done == last_step:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = Settings(home=home, model=model, decode_workers=0)
    with open_stores(settings) as stores:
        train_candidate(stores, settings, an_order(what), progress=progress)
