"""The ingest flow: Prefect around `intake`; a task for some batches, and nothing but Prefect's business."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from flows.deps import open_deps
from flows.intake import LimitExceeded, Request, ingest_source
from flows.missing import USUAL_SHARE
from flows.progress import progress_bar
from flows.report import IngestReport, as_markdown
from flows.settings import load_settings, split_list
from storage.source import BadSource, count_rows


def carry_out(work: Callable[[], int]) -> int:
    """Do `work`; as one argument that cannot be looked into, it costs Prefect nothing to pass on."""
    return work()


carry_out_step = task(name="ingest batches", cache_policy=NO_CACHE)(carry_out)


@flow(name="ingest")
def ingest(
    location: Path,
    name: str | None = None,
    langs: str | None = None,
    limit: int | None = None,
    delete_missing: bool = False,
    revive: bool = False,
    max_delete: float = USUAL_SHARE,
    yes: bool = False,
) -> IngestReport:
    """Embed and store every record of a folder or manifest; run it again to pick up changes."""
    settings = load_settings()
    chosen = None if langs is None else split_list(langs)
    request = Request(location, name, chosen, limit, delete_missing, revive, max_delete=max_delete, yes=yes)
    with (
        open_deps(settings, wait_s=settings.retry_for_s) as deps,
        progress_bar(f"ingest {location.name}", expected_rows(location, limit)) as advance,
    ):
        try:
            report = ingest_source(
                deps,
                settings,
                request,
                step=carry_out_step,
                prefect_run_id=UUID(flow_run.id) if flow_run.id else None,
                advance=advance,
            )
        except LimitExceeded as error:
            sum_up(error.report)
            raise
    sum_up(report)
    return report


def expected_rows(location: Path, limit: int | None) -> int | None:
    """Return how long the progress bar is; None where the rows cannot be counted, as the run will say."""
    try:
        return min(count_rows(location), limit or sys.maxsize)
    except BadSource:
        return None


def sum_up(report: IngestReport) -> None:
    """Write the page that Prefect shows for the run."""
    create_markdown_artifact(as_markdown(report), key=artifact_key(report.source))


def artifact_key(source: str) -> str:
    """Return a name that Prefect takes as an artifact's key: lowercase letters, digits and dashes.

    >>> artifact_key("Fotos 2024/Öl")
    'ingest-fotos-2024-l'
    """
    return "ingest-" + re.sub(r"[^a-z0-9]+", "-", source.lower()).strip("-")
