"""Represent a search of the search page and its URL.

A reloaded or shared URL shows the same search.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args
from urllib.parse import urlencode
from uuid import UUID

from starlette.datastructures import QueryParams

from flows.search.query import Find
from storage.records import parse_conditions

PAGE = 24
"""Hits of the first page, and of each further one."""

MOST = 20 * PAGE
LONGEST_TEXT = 2000
KINDS: tuple[Find, ...] = get_args(Find)


@dataclass(frozen=True, slots=True)
class SearchParams:
    """Represent one search."""

    text: str = ""
    image: str | None = None
    """The token of an uploaded image; see `Uploads`."""

    like: UUID | None = None
    find: Find = "images"
    where: tuple[tuple[str, str], ...] = ()
    min_score: float | None = None
    limit: int = PAGE

    @property
    def is_query(self) -> bool:
        """Return whether the search has a query."""
        return bool(self.text or self.image or self.like)

    @property
    def address(self) -> str:
        """Return the path of this search.

        >>> SearchParams("a red apple", find="texts", where=(("source", "shop"),)).address
        '/search?q=a+red+apple&find=texts&where=source%3Dshop'
        >>> SearchParams().address
        '/search'
        """
        said: list[tuple[str, Any]] = [
            ("q", self.text),
            ("picture", self.image),
            ("like", self.like),
            ("find", "" if self.find == "images" else self.find),
            *(("where", f"{field}={value}") for field, value in self.where),
            ("min", "" if self.min_score is None else f"{self.min_score:g}"),
            ("limit", "" if self.limit == PAGE else self.limit),
        ]
        query = urlencode([(name, value) for name, value in said if value])
        return f"/search?{query}" if query else "/search"


def parse_params(params: QueryParams) -> SearchParams:
    """Parse the query of a search URL.

    Raises:
        ValueError: a parameter is invalid; the message is for the user.
    """
    find = next((kind for kind in KINDS if kind == params.get("find", "images")), None)
    if find is None:
        raise ValueError(f"the address has find={params['find']}; it takes {' or '.join(KINDS)}")
    return SearchParams(
        text=params.get("q", "").strip()[:LONGEST_TEXT],
        image=params.get("picture") or None,
        like=_like(params.get("like")),
        find=find,
        where=parse_filters(params.getlist("where")),
        min_score=_number("min", params.get("min"), -1, 1),
        limit=int(_number("limit", params.get("limit"), 1, MOST) or PAGE),
    )


def parse_filters(filters: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Parse `field=value` filters; several values of one field mean any of them.

    Raises:
        ValueError: one is malformed.
    """
    try:
        found = parse_conditions(filters)
    except ValueError as error:
        problem = f"{error.args[0]!r} is not a filter; write it as field=value, such as source=shop"
        raise ValueError(problem) from None
    return tuple(
        (field, value)
        for field, values in found.items()
        for value in ((values,) if isinstance(values, str) else values)
    )


def _like(given: str | None) -> UUID | None:
    try:
        return UUID(given) if given else None
    except ValueError:
        raise ValueError(f"the address has like={given}, which is no record's id") from None


def _number(name: str, given: str | None, least: float, most: float) -> float | None:
    if not given:
        return None
    problem = f"the address has {name}={given}; it takes a number from {least:g} to {most:g}"
    try:
        number = float(given)
    except ValueError:
        raise ValueError(problem) from None
    if not least <= number <= most:
        raise ValueError(problem)
    return number
