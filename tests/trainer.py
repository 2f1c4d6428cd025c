"""A training in a process of its own, which ends itself by SIGKILL after a given step.

python -m tests.trainer HOME MODEL WHAT STEP
"""

import os
import signal
import sys
from pathlib import Path

from embedding.train import What, options_of
from flows.deps import open_stores
from flows.settings import Settings
from flows.training import Order, train_candidate

EPOCHS = 3
BATCH_SIZE = 8


def an_order(what: What) -> Order:
    """Some steps over few pairs, with what is random in a training."""
    return Order(options_of(what, epochs=EPOCHS, batch_size=BATCH_SIZE))


def main(home: Path, model: str, what: What, last_step: int) -> None:
    def advance(stage: str, done: int, _of: int) -> None:
        if stage == "train" and done == last_step:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = Settings(home=home, model=model, decode_workers=0)
    with open_stores(settings) as stores:
        sys.stdout.write(train_candidate(stores, settings, an_order(what), advance=advance).fingerprint)


if __name__ == "__main__":
    _, home, model, what, step = sys.argv
    main(Path(home), model, "head" if what == "head" else "lora", int(step))
