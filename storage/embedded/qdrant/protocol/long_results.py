"""Write long lists of points page by page.

None is in memory whole. Other requests are answered between two pages, as between the pages of a client that
scrolls by itself.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from pydantic_core import to_json
from qdrant_client import models

from storage.embedded.qdrant.engine.target import Target
from storage.embedded.qdrant.protocol.reads import DEFAULT_LIMIT, retrieve, scroll
from storage.embedded.qdrant.protocol.responses import vector_length
from storage.embedded.qdrant.protocol.vectors import point_id

PAGE_POINTS = 10_000
PAGE_NUMBERS = 1_000_000
"""Limit of numbers in the vectors of a page; writing them takes a tenth of a second."""

Current = Callable[[], Target]
"""Returns the collection as it is now: between two pages a graph may have replaced its shard."""

Parts = Iterator[bytes]
"""Parts of the JSON of a result; an error of the request itself comes with the first."""


def retrieve_any(request: models.PointRequest, current: Current) -> list[models.Record] | Parts:
    """Return the existing points of these ids, many of them in parts."""
    target = current()
    size = _page_size(request.with_vector, target)
    if len(request.ids) <= size:
        return retrieve(request, target)
    return _retrieved(request, current, list(dict.fromkeys(map(point_id, request.ids))), size)


def scroll_any(request: models.ScrollRequest, current: Current) -> models.ScrollResult | Parts:
    """Return the points of a scroll, many of them in parts.

    In the order of a payload field there is no offset to go on from: all points are one page.
    """
    target = current()
    limit = DEFAULT_LIMIT if request.limit is None else request.limit
    size = _page_size(request.with_vector, target)
    if request.order_by is not None or limit <= size:
        return scroll(request, target)
    return _scrolled(request, current, limit, size)


def _page_size(selector: models.WithVector | None, target: Target) -> int:
    """Return the points per page, by the size of their vectors."""
    return max(1, min(PAGE_POINTS, PAGE_NUMBERS // max(1, vector_length(selector, target))))


def _retrieved(request: models.PointRequest, current: Current, ids: Sequence[int | str], size: int) -> Parts:
    pages = (
        retrieve(request.model_copy(update={"ids": ids[start : start + size]}), current())
        for start in range(0, len(ids), size)
    )
    yield from _after(b"[", _joined(pages))
    yield b"]"


def _scrolled(request: models.ScrollRequest, current: Current, limit: int, size: int) -> Parts:
    following = request.offset

    def pages() -> Iterator[list[models.Record]]:
        nonlocal following
        left = limit
        while left:
            wanted = {"limit": min(size, left), "offset": following}
            page = scroll(request.model_copy(update=wanted), current())
            following = page.next_page_offset
            left = left - len(page.points) if following is not None else 0
            yield page.points

    yield from _after(b'{"points":[', _joined(pages()))
    yield b'],"next_page_offset":' + to_json(following) + b"}"


def _joined(pages: Iterable[Sequence[models.Record]]) -> Parts:
    """Write pages, some empty, as the inside of one JSON array."""
    comma = b""
    for page in pages:
        items = to_json(page)[1:-1]
        yield comma + items if items else b""
        comma = b"," if items else comma


def _after(head: bytes, parts: Parts) -> Parts:
    """Write a head together with the first part, which may fail."""
    for part in parts:
        yield head + part
        head = b""
