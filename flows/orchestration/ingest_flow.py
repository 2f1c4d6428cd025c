"""The ingest of a command as a Prefect flow: a task for some batches, and an artifact that sums it up."""

import re
from pathlib import Path
from uuid import UUID

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from flows.config.settings import load_settings, split_list
from flows.ingestion.missing_items import DEFAULT_MAX_SHARE
from flows.ingestion.report import IngestReport, as_markdown
from flows.ingestion.request import Request
from flows.ingestion.run_state import LimitExceeded
from flows.orchestration import jobs

ingest_batches = task(name="ingest batches", cache_policy=NO_CACHE)(jobs.run_here)


@flow(name="ingest")
def ingest(
    location: Path,
    name: str | None = None,
    langs: str | None = None,
    limit: int | None = None,
    delete_missing: bool = False,
    revive: bool = False,
    max_delete: float = DEFAULT_MAX_SHARE,
    yes: bool = False,
) -> IngestReport:
    """Embed and store every record of a folder or manifest; run it again to pick up changes."""
    chosen = None if langs is None else split_list(langs)
    request = Request(location, name, chosen, limit, delete_missing, revive, max_delete=max_delete, yes=yes)
    run = UUID(flow_run.id) if flow_run.id else None
    try:
        report = jobs.ingest(load_settings(), request, location, step=ingest_batches, prefect_run_id=run)
    except LimitExceeded as error:
        sum_up(error.report)
        raise
    sum_up(report)
    return report


def sum_up(report: IngestReport) -> None:
    """Write the page that Prefect shows for the run."""
    create_markdown_artifact(as_markdown(report), key=artifact_key(report.source))


def artifact_key(source: str) -> str:
    """Return a name that Prefect takes as an artifact's key: lowercase letters, digits and dashes.

    >>> artifact_key("Fotos 2024/Öl")
    'ingest-fotos-2024-l'
    """
    return "ingest-" + re.sub(r"[^a-z0-9]+", "-", source.lower()).strip("-")
