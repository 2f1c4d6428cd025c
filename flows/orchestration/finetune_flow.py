"""The training of a command as a Prefect flow, and the model card as its artifact."""

from pathlib import Path
from uuid import UUID

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from embedding.training.losses import LossName
from embedding.training.trainer import What
from flows.config.settings import load_settings
from flows.orchestration import jobs
from flows.training.finetune import Candidate, order_of

train = task(name="train", cache_policy=NO_CACHE)(jobs.run_here)


@flow(name="finetune")
def finetune(
    model: str | None = None,
    what: What = "head",
    losses: dict[LossName, float] | None = None,
    held_out: float = 0.2,
    held_out_keys: Path | None = None,
    judgments: Path | None = None,
    hard_negatives: int = 0,
    epochs: int | None = None,
    batch_size: int = 64,
    learning_rate: float | None = None,
    seed: int = 0,
) -> Candidate:
    """Train a candidate on the captioned images that are stored; run it again to resume a killed one."""
    order = order_of(
        model=model,
        what=what,
        losses=losses,
        held_out=held_out,
        held_out_keys=held_out_keys,
        judgments=judgments,
        hard_negatives=hard_negatives,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
    )
    run = UUID(flow_run.id) if flow_run.id else None
    candidate = jobs.finetune(load_settings(), order, step=train, prefect_run_id=run)
    create_markdown_artifact((candidate.folder / "README.md").read_text("utf-8"), key="finetune")
    return candidate
