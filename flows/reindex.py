"""The flow that changes the model of searches: Prefect around `rebuild`, nothing but Prefect's business."""

from collections.abc import Callable
from functools import partial
from uuid import UUID

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from flows.deps import open_stores
from flows.progress import stages
from flows.rebuild import Order, Switched, free_disk
from flows.rebuild import reindex as rebuild
from flows.settings import load_settings


def carry_out(work: Callable[[], Switched]) -> Switched:
    """Do `work`; as one argument that cannot be looked into, it costs Prefect nothing to pass on."""
    return work()


carry_out_step = task(name="fill and switch", cache_policy=NO_CACHE)(carry_out)


@flow(name="reindex")
def reindex(model: str, force: bool = False, yes: bool = False, max_missing: int = 0) -> Switched:
    """Fill a collection of another model and have searches go to it; run it again to take up a killed one."""
    settings = load_settings()
    order = Order(model, force, yes, max_missing)
    with open_stores(settings, wait_s=settings.retry_for_s) as stores, stages("reindex") as advance:
        work = partial(
            rebuild,
            stores,
            settings,
            order,
            free_bytes=free_disk(settings),
            prefect_run_id=UUID(flow_run.id) if flow_run.id else None,
            advance=advance,
        )
        return carry_out_step(work)
