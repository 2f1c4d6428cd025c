"""What a search page is asked for, and the address that says so: reloaded or shared, it shows the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args
from urllib.parse import urlencode
from uuid import UUID

from starlette.datastructures import QueryParams

from flows.search.query import Find

PAGE = 24
"""Hits that are shown at first, and how many more each time."""

MOST = 20 * PAGE
LONGEST_TEXT = 2000
KINDS: tuple[Find, ...] = get_args(Find)


@dataclass(frozen=True, slots=True)
class SearchParams:
    """One search."""

    text: str = ""
    picture: str | None = None
    """The token of an image that was handed in; see `Uploads`."""

    like: UUID | None = None
    find: Find = "images"
    where: tuple[tuple[str, str], ...] = ()
    min_score: float | None = None
    limit: int = PAGE

    @property
    def is_query(self) -> bool:
        """Whether anything is looked for."""
        return bool(self.text or self.picture or self.like)

    @property
    def address(self) -> str:
        """The path of the page that shows this search.

        >>> Asked("a red apple", find="texts", where=(("source", "shop"),)).address
        '/search?q=a+red+apple&find=texts&where=source%3Dshop'
        >>> Asked().address
        '/search'
        """
        said: list[tuple[str, Any]] = [
            ("q", self.text),
            ("picture", self.picture),
            ("like", self.like),
            ("find", "" if self.find == "images" else self.find),
            *(("where", f"{field}={value}") for field, value in self.where),
            ("min", "" if self.min_score is None else f"{self.min_score:g}"),
            ("limit", "" if self.limit == PAGE else self.limit),
        ]
        query = urlencode([(name, value) for name, value in said if value])
        return f"/search?{query}" if query else "/search"


def parse_params(params: QueryParams) -> SearchParams:
    """Return what the query of an address asks for.

    Raises:
        ValueError: it says what no search can be; the message is for whoever opened it.
    """
    find = next((kind for kind in KINDS if kind == params.get("find", "images")), None)
    if find is None:
        raise ValueError(f"the address asks for find={params['find']}; it takes {' or '.join(KINDS)}")
    return SearchParams(
        text=params.get("q", "").strip()[:LONGEST_TEXT],
        picture=params.get("picture") or None,
        like=_like(params.get("like")),
        find=find,
        where=parse_filters(params.getlist("where")),
        min_score=_number("min", params.get("min"), -1, 1),
        limit=int(_number("limit", params.get("limit"), 1, MOST) or PAGE),
    )


def parse_filters(filters: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return filters as people write them as fields and values; of those with the same field the last.

    Raises:
        ValueError: one is no filter.

    >>> pairs(["kind=poem", "source=a=b", "kind=song"])
    (('kind', 'song'), ('source', 'a=b'))
    """
    found = {}
    for one in filters:
        field, equals, value = one.partition("=")
        if not field.strip() or not equals:
            raise ValueError(f"{one!r} is no filter; write it as field=value, such as source=shop")
        found[field.strip()] = value
    return tuple(found.items())


def _like(given: str | None) -> UUID | None:
    try:
        return UUID(given) if given else None
    except ValueError:
        raise ValueError(f"the address asks for like={given}, which is no record's id") from None


def _number(name: str, given: str | None, least: float, most: float) -> float | None:
    if not given:
        return None
    problem = f"the address asks for {name}={given}; it takes a number from {least:g} to {most:g}"
    try:
        number = float(given)
    except ValueError:
        raise ValueError(problem) from None
    if not least <= number <= most:
        raise ValueError(problem)
    return number
