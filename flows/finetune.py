"""The flow that trains a candidate: Prefect around `training`, and nothing but Prefect's business."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from uuid import UUID

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from embedding.losses import LossName
from embedding.pairs import Split
from embedding.train import What, options_of
from flows.deps import open_stores
from flows.progress import stages
from flows.settings import load_settings
from flows.testsets import lines_of
from flows.training import Candidate, Order, train_candidate


def carry_out(work: Callable[[], Candidate]) -> Candidate:
    """Do `work`; as one argument that cannot be looked into, it costs Prefect nothing to pass on."""
    return work()


carry_out_step = task(name="train", cache_policy=NO_CACHE)(carry_out)


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
    """Train a candidate on the captioned pictures that are stored; run it again to take up a killed one."""
    settings = load_settings()
    keys = None if held_out_keys is None else lines_of(held_out_keys)
    order = Order(
        options_of(what, losses, epochs, batch_size, learning_rate, seed),
        Split(seed, held_out, keys=keys),
        model,
        hard_negatives,
        judgments,
    )
    with open_stores(settings, wait_s=settings.retry_for_s) as stores, stages("finetune") as advance:
        run = UUID(flow_run.id) if flow_run.id else None
        work = partial(train_candidate, stores, settings, order, prefect_run_id=run, advance=advance)
        candidate = carry_out_step(work)
    create_markdown_artifact((candidate.folder / "README.md").read_text("utf-8"), key="finetune")
    return candidate
