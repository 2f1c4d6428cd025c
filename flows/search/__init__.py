"""Search stored items by text, image or record.

Public: `open_search` keeps the stores and a model open, `search` returns the hits of a `Query`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flows.search.query import Query, Results, open_search, search

__all__ = ["Query", "Results", "open_search", "search"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flows.search import query  # on first use: commands that search nothing need not wait for it

    return getattr(query, name)
