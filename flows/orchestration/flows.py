"""Define the Prefect flows, one for each job.

A job is imported when its flow runs, in a process of its own: the process that serves the flows stays small.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec
from uuid import UUID

from prefect import Flow, flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import deployment as current_deployment
from prefect.runtime import flow_run as current
from prefect.states import Completed

from flows.config.settings import load_settings
from flows.ingestion.missing_items import DEFAULT_MAX_SHARE
from flows.orchestration import hooks
from flows.tracking.progress import Progress, stage_bars
from storage.errors import SightlineError
from storage.postgres.locks import Busy

SKIPPED = "Skipped"
"""State of a run that found another process at the same work."""

REFUSED = "Refused"
"""State of a run whose request cannot be met; the reason is on record."""

SUBJECTS = ("name", "location", "model", "source")
"""Parameters that name a run, the first that is set."""

Outcome = Any
"""Result of a job, or the Prefect state Skipped."""

Parameters = ParamSpec("Parameters")


def job_flow(body: Callable[Parameters, Outcome]) -> Flow[Parameters, Outcome]:
    """Create the flow of a job, with a run name and hooks."""
    made = flow(
        name=body.__name__,
        flow_run_name=run_name,
        on_failure=[hooks.failed],
        on_crashed=[hooks.crashed],
        on_cancellation=[hooks.cancelled],
    )
    return made(body)


def job_task(name: str) -> Callable[[Callable[[], Any]], Any]:
    """Create a task for one step of a job, without a cache."""

    def run_step(step: Callable[[], Any]) -> Any:
        return step()

    return task(name=name, cache_policy=NO_CACHE)(run_step)


def run_name() -> str:
    """Return the flow with its subject or the time."""
    found = (current.parameters.get(name) for name in SUBJECTS)
    subject = next((Path(str(value)).name for value in found if value), None)
    return f"{current.flow_name} {subject or f'{datetime.now(UTC):%Y-%m-%d %H:%M}'}"


class StageLog:
    """Log the start of each stage to Prefect, and show all progress."""

    def __init__(self, show: Progress) -> None:
        self._show, self._log, self._stage = show, get_run_logger(), ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._stage = stage
            self._log.info("stage %s%s", stage, f", {total:,} steps" if total else "")
        self._show(stage, done, total)


def run_job(
    job: Callable[..., Any],
    summarize: Callable[[Any], "Summary"] | None = None,
    **parameters: Any,
) -> Outcome:
    """Run a job, and publish a summary as an artifact.

    Args:
        summarize: writes the artifact of the result; default: a table of its counts.

    Returns:
        The result; or the state Skipped where another run of the same work holds its lock, and Refused where
        the request cannot be met. A command gets the error instead.
    """
    title = str(current.name or job.__name__)
    try:
        with stage_bars(title) as bars:
            run_id = UUID(current.id) if current.id else None
            result = job(load_settings(), run_id, progress=StageLog(bars), **parameters)
    except Busy as error:
        if current_deployment.id is None:
            raise
        return Completed(name=SKIPPED, message=str(error))
    except SightlineError as error:
        if current_deployment.id is None or not error.refusal:
            raise
        return Completed(name=REFUSED, message=str(error))
    publish(Summary(job.__name__, as_table(title, result)) if summarize is None else summarize(result))
    return result


class Summary(NamedTuple):
    """Represent the artifact of a run; later runs share its name."""

    name: str
    text: str


def publish(summary: Summary) -> None:
    """Create the artifact of the current run."""
    create_markdown_artifact(summary.text, key=artifact_key(summary.name))


def as_table(title: str, result: Any) -> str:
    """Return the counts of a job as a Markdown table."""
    counts: Mapping[str, Any] = result if isinstance(result, Mapping) else result.as_json()
    rows = "\n".join(f"| {name} | {value} |" for name, value in counts.items())
    return f"# {title}\n\n| name | value |\n|---|---:|\n{rows}\n"


def artifact_key(name: str) -> str:
    """Return a valid artifact key: lowercase letters, digits and dashes.

    >>> artifact_key("ingest Fotos 2024/Öl")
    'ingest-fotos-2024-l'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@job_flow
def ingest(
    location: Path | None = None,
    name: str | None = None,
    langs: str | None = None,
    limit: int | None = None,
    delete_missing: bool = False,
    revive: bool = False,
    max_delete: float = DEFAULT_MAX_SHARE,
    yes: bool = False,
    exclude: list[str] | None = None,
    columns: dict[str, str] | None = None,
) -> Outcome:
    """Ingest a folder or manifest, or all known sources.

    Args:
        location: None reads every source again, with its last options.
    """
    from flows.ingestion.report import IngestReport, as_markdown
    from flows.ingestion.run_state import LimitExceeded
    from flows.orchestration.jobs import ingest as jobs

    def summarize(result: Any) -> Summary:
        if isinstance(result, IngestReport):
            return Summary(f"ingest {result.source}", as_markdown(result))
        return Summary("ingest", as_table("all sources", result))

    try:
        return run_job(
            jobs.ingest,
            summarize,
            location=location,
            name=name,
            langs=langs,
            limit=limit,
            delete_missing=delete_missing,
            revive=revive,
            max_delete=max_delete,
            yes=yes,
            exclude=exclude or [],
            columns=columns,
            step=job_task("ingest batches"),
        )
    except LimitExceeded as error:
        publish(summarize(error.report))
        raise


@job_flow
def evaluate() -> Outcome:
    """Evaluate the active model on held-out records."""
    from flows.orchestration.jobs import models as jobs

    return run_job(jobs.evaluate)


@job_flow
def reconcile() -> Outcome:
    """Compare Postgres and Qdrant without changing them; fail when they differ."""
    from flows.orchestration.jobs import stores as jobs

    return run_job(jobs.reconcile)


@job_flow
def finetune(
    model: str | None = None,
    what: str = "head",
    losses: dict[str, float] | None = None,
    held_out: float = 0.2,
    held_out_keys: Path | None = None,
    judgments: Path | None = None,
    hard_negatives: int = 0,
    epochs: int | None = None,
    batch_size: int = 64,
    learning_rate: float | None = None,
    seed: int = 0,
    promote: bool = True,
) -> Outcome:
    """Train a candidate, and by default promote it and re-index.

    Args:
        promote: switch searches to the candidate if it passes the promotion gate.
    """
    from flows.orchestration.jobs import models as jobs

    def summarize(result: Any) -> Summary:
        if isinstance(result, Mapping):
            return Summary("finetune", as_table("finetune", result))
        card: Path = result.folder / "README.md"
        return Summary("finetune", card.read_text("utf-8"))

    return run_job(
        jobs.finetune,
        summarize,
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
        promote=promote,
        step=job_task("train"),
    )


@job_flow
def backup() -> Outcome:
    """Write a backup to SIGHTLINE_BACKUP_URL."""
    from flows.orchestration.jobs import stores as jobs

    return run_job(jobs.backup)


@job_flow
def prove() -> Outcome:
    """Restore the latest backup into temporary stores and compare them."""
    from flows.orchestration.jobs import stores as jobs

    return run_job(jobs.prove)


@job_flow
def purge() -> Outcome:
    """Purge unused images and collections, within the usual limit."""
    from flows.orchestration.jobs import stores as jobs

    return run_job(jobs.purge)


@job_flow
def promote(model: str, force: bool = False) -> Outcome:
    """Decide whether searches may use a candidate."""
    from flows.orchestration.jobs import models as jobs

    return run_job(jobs.promote, model=model, force=force)


@job_flow
def reindex(model: str, force: bool = False, yes: bool = False, max_missing: int = 0) -> Outcome:
    """Fill and verify the collection of a model; then switch searches."""
    from flows.orchestration.jobs import models as jobs

    step = job_task("fill and switch")
    return run_job(jobs.reindex, model=model, force=force, yes=yes, max_missing=max_missing, step=step)


@job_flow
def rollback() -> Outcome:
    """Switch searches back to the model before."""
    from flows.orchestration.jobs import models as jobs

    return run_job(jobs.rollback)


@job_flow
def repair() -> Outcome:
    """Repair the differences between Postgres and Qdrant, within the usual delete limit."""
    from flows.orchestration.jobs import stores as jobs

    return run_job(jobs.repair)


@job_flow
def retry(reason: str | None = None, source: str | None = None, rejects: list[UUID] | None = None) -> Outcome:
    """Retry open rejects: by reason, by source, or these."""
    from flows.orchestration.jobs import ingest as jobs

    return run_job(jobs.retry, reason=reason, source=source, rejects=rejects)


SCHEDULED: tuple[Flow[..., Outcome], ...] = (ingest, evaluate, reconcile, finetune, backup, prove, purge)
ON_REQUEST: tuple[Flow[..., Outcome], ...] = (promote, reindex, rollback, repair, retry)
