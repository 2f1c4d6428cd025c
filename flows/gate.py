"""The gate: whether a candidate may take the place of the active model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flows.deps import Stores
from flows.settings import Settings


@dataclass(frozen=True, slots=True)
class Decision:
    """What the gate says of a candidate, and why."""

    promoted: bool
    checks: tuple[Any, ...]


def promote(
    stores: Stores,
    settings: Settings,
    name: str,
    *,
    outside: Sequence[str] | None = None,
    force: bool = False,
) -> Decision:
    """Decide whether the candidate `name` may take the place of the active model."""
    raise NotImplementedError(stores, settings, name, outside, force)
