"""The re-index of a command as a Prefect flow."""

from uuid import UUID

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from flows.config.settings import load_settings
from flows.orchestration import jobs
from flows.reindexing.reindex import Order, Switched

fill_and_switch = task(name="fill and switch", cache_policy=NO_CACHE)(jobs.run_here)


@flow(name="reindex")
def reindex(model: str, force: bool = False, yes: bool = False, max_missing: int = 0) -> Switched:
    """Fill a collection of another model and switch searches to it; run it again to resume a killed one."""
    run = UUID(flow_run.id) if flow_run.id else None
    order = Order(model, force, yes, max_missing)
    return jobs.reindex(load_settings(), order, step=fill_and_switch, prefect_run_id=run)
