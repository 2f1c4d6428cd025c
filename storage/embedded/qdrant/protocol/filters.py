"""Convert filters from the REST API's models to the engine's.

Where a field has no index, the engine compares texts and nulls otherwise than a server does (1.19.0): it
matches whole words in lower case where a server matches characters, and calls an array null that holds one. A
filter means here what it means on a server, so that a delete by it deletes the same points.
"""

from collections.abc import Iterable
from datetime import date
from math import isfinite
from typing import Any

import numpy as np
import qdrant_edge as edge
from qdrant_client import models

from storage.embedded.qdrant.engine.bindings import engine_errors
from storage.embedded.qdrant.protocol.errors import Invalid, RequestError
from storage.embedded.qdrant.protocol.json_depth import MAX_LEVELS, levels
from storage.embedded.qdrant.protocol.named_vectors import Fields
from storage.embedded.qdrant.protocol.vectors import point_id

OUTER_LEVEL = 2
"""Level of a filter in the body of a search, and in the engine's record of a delete."""

LEAF_LEVELS = 6
"""Most levels of a condition without nested conditions: the holes of a polygon."""

REPLACED_LEVELS = 4
"""Most levels that the replacement of a condition on a field without an index has more than the condition."""

Words = models.MatchText | models.MatchTextAny | models.MatchPhrase
INT64 = range(-(2**63), 2**63)

EngineCondition = Any  # the engine's stubs lack SliceCondition, so no union of theirs can name them all


def to_filter(filter: models.Filter | None, fields: Fields, level: int = OUTER_LEVEL) -> edge.Filter | None:
    """Convert a filter to the engine's form; None stays None.

    Args:
        filter: as the request gives it.
        fields: the collection's payload indexes.
        level: the level of the filter in the engine's record.

    Raises:
        RequestError: it is deeper than `MAX_LEVELS`, so that the engine could not read its record; or a
            condition is empty, or has a bad path, id or number.
    """
    with engine_errors():
        return None if filter is None else _filter(filter, fields, level)


def to_condition(condition: models.Condition, fields: Fields) -> EngineCondition:
    """Convert a condition to the engine's form; raises as `to_filter`."""
    with engine_errors():
        return _condition(condition, fields, OUTER_LEVEL)


def _filter(filter: models.Filter, fields: Fields, level: int) -> edge.Filter:
    """Convert a filter that lies at `level` of the engine's record.

    Its conditions are objects in arrays in it.
    """
    return edge.Filter(
        must=_conditions(filter.must, fields, level + 2),
        should=_conditions(filter.should, fields, level + 2),
        must_not=_conditions(filter.must_not, fields, level + 2),
        min_should=_min_should(filter.min_should, fields, level + 3),
    )


def _conditions(
    given: list[models.Condition] | models.Condition | None, fields: Fields, level: int
) -> list[EngineCondition] | None:
    if given is None:
        return None
    return [_condition(one, fields, level) for one in (given if isinstance(given, list) else [given])]


def _min_should(given: models.MinShould | None, fields: Fields, level: int) -> edge.MinShould | None:
    if given is None:
        return None
    if not 1 <= given.min_count < 2**63:
        # A server carries out a delete by 0, which empties the collection; all else it refuses.
        raise Invalid(f"min_count must be a number from 1 up, got {given.min_count}")
    return edge.MinShould([_condition(one, fields, level) for one in given.conditions], given.min_count)


def _condition(condition: models.Condition, fields: Fields, level: int) -> EngineCondition:
    if level + LEAF_LEVELS + REPLACED_LEVELS > MAX_LEVELS:
        _require_room(condition, fields, level)
    match condition:
        case models.Filter():
            return _filter(condition, fields, level)
        case models.FieldCondition():
            return _field(condition, fields)
        case models.NestedCondition(nested=nested):
            return edge.NestedCondition(
                nested.key, _filter(nested.filter, fields.below(nested.key), level + 2)
            )
        case models.HasIdCondition(has_id=ids):
            return edge.HasIdCondition({point_id(id) for id in ids})
        case models.HasVectorCondition(has_vector=name):
            return edge.HasVectorCondition(name)
        case models.IsEmptyCondition(is_empty=field):
            return edge.IsEmptyCondition(field.key)
        case models.IsNullCondition(is_null=field):
            return _is_null(field.key, fields)
        case models.SliceCondition(slice=part):
            return _slice(part)


def _require_room(condition: models.Condition, fields: Fields, level: int) -> None:
    own = levels(condition.model_dump(mode="json", exclude_none=True))
    if isinstance(condition, models.IsNullCondition):
        own += 0 if fields.is_indexed(condition.is_null.key) else REPLACED_LEVELS
    elif isinstance(condition, models.FieldCondition):
        is_replaced = _compares_characters(condition, fields) or _compares_null(condition, fields)
        own += REPLACED_LEVELS if is_replaced else 0
    if level - 1 + own > MAX_LEVELS:
        raise RequestError(
            f"the filter is nested too deep: the request with it has {level - 1 + own} levels of JSON, "
            f"the limit is {MAX_LEVELS}"
        )


def _slice(part: models.Slice) -> EngineCondition:
    if not 0 <= part.index < part.total < 2**32:
        raise RequestError(f"slice {part.index} of {part.total}: the index must be from 0 to below the total")
    slice_condition: Any = getattr(edge, "SliceCondition")  # noqa: B009  (the stubs lack it)
    return slice_condition(part.total, part.index)


def _field(given: models.FieldCondition, fields: Fields) -> EngineCondition:
    stated = [name for name, value in given if name != "key" and value is not None]
    if not stated:
        raise RequestError(
            f"the condition on {given.key!r} is empty: at least one field condition must be specified"
        )
    if isinstance(given.match, Words) and _compares_characters(given, fields):
        return _all_of(given, "match", _characters(given.key, given.match), fields)
    if _compares_null(given, fields):
        return _all_of(given, "is_null", _is_null(given.key, fields), fields)
    return edge.FieldCondition(
        given.key,
        match=None if given.match is None else _match(given.match),
        range=None if given.range is None else _range(given.range),
        geo_bounding_box=None if given.geo_bounding_box is None else _box(given.geo_bounding_box),
        geo_radius=None if given.geo_radius is None else _radius(given.geo_radius),
        geo_polygon=None if given.geo_polygon is None else _polygon(given.geo_polygon),
        values_count=None if given.values_count is None else _values_count(given.values_count),
        is_empty=given.is_empty,
        is_null=given.is_null,
    )


def _compares_characters(given: models.FieldCondition, fields: Fields) -> bool:
    return isinstance(given.match, Words) and not fields.has_text_index(given.key)


def _compares_null(given: models.FieldCondition, fields: Fields) -> bool:
    return bool(given.is_null) and not fields.is_indexed(given.key)


def _all_of(
    given: models.FieldCondition, name: str, part: EngineCondition, fields: Fields
) -> EngineCondition:
    """Return `part`, which replaces one attribute, with the other attributes."""
    others = given.model_copy(update={name: None})
    if all(value is None for other, value in others if other != "key"):
        return part
    return edge.Filter(must=[part, _field(others, fields)])


def _characters(key: str, match: Words) -> EngineCondition:
    """Match the characters of a text on a field without index."""
    if isinstance(match, models.MatchText):
        return _substring(key, match.text)
    if isinstance(match, models.MatchPhrase):
        return _substring(key, match.phrase)
    words = match.text_any.split()
    if not words:
        return edge.HasIdCondition(set())
    return edge.Filter(should=[_substring(key, word) for word in words])


def _substring(key: str, text: str) -> edge.FieldCondition:
    return edge.FieldCondition(key, match=edge.MatchSubstring(text))


def _is_null(key: str, fields: Fields) -> EngineCondition:
    if fields.is_indexed(key):
        return edge.IsNullCondition(key)
    has_values = edge.FieldCondition(key, values_count=edge.ValuesCount(gte=1))
    return edge.Filter(must=[edge.IsNullCondition(key)], must_not=[has_values])


def _match(match: models.Match) -> Any:
    match match:
        case models.MatchValue(value=value):
            return _match_value(value)
        case models.MatchAny(any=values):
            _check_int64(values)
            return edge.MatchAny(values)
        case models.MatchExcept(except_=values):
            _check_int64(values)
            return edge.MatchExcept(values)
        case models.MatchText(text=text):
            return edge.MatchText(text)
        case models.MatchTextAny(text_any=text):
            return edge.MatchTextAny(text)
        case models.MatchPhrase(phrase=phrase):
            return edge.MatchPhrase(phrase)
        case models.MatchPrefix(prefix=prefix):
            return edge.MatchPrefix(prefix)
    raise RequestError(f"the embedded index has no {type(match).__name__}, as Qdrant 1.19 has none")


def _match_value(value: models.ValueVariants) -> edge.MatchValue:
    _check_int64([value])
    # To the engine Python's True is the number 1, which is not true in a payload; numpy's is only a bool.
    plain: Any = np.bool_(value) if isinstance(value, bool) else value
    return edge.MatchValue(plain)


def _range(bounds: models.RangeInterface) -> edge.RangeFloat | edge.RangeDateTime:
    if isinstance(bounds, models.DatetimeRange):
        return edge.RangeDateTime(
            gte=_instant(bounds.gte), gt=_instant(bounds.gt), lte=_instant(bounds.lte), lt=_instant(bounds.lt)
        )
    for bound in (bounds.gte, bounds.gt, bounds.lte, bounds.lt):
        check_finite("a bound of a range", bound)
    return edge.RangeFloat(gte=bounds.gte, gt=bounds.gt, lte=bounds.lte, lt=bounds.lt)


def _instant(bound: date | None) -> str | None:
    # Without a zone the engine takes it as UTC, like a server.
    return None if bound is None else bound.isoformat()


def _box(box: models.GeoBoundingBox) -> edge.GeoBoundingBox:
    return edge.GeoBoundingBox(_point(box.top_left), _point(box.bottom_right))


def _radius(circle: models.GeoRadius) -> edge.GeoRadius:
    check_finite("the radius", circle.radius)
    return edge.GeoRadius(_point(circle.center), circle.radius)


def _polygon(polygon: models.GeoPolygon) -> edge.GeoPolygon:
    holes = None if polygon.interiors is None else [_line(line) for line in polygon.interiors]
    return edge.GeoPolygon(_line(polygon.exterior), holes)


def _line(line: models.GeoLineString) -> list[edge.GeoPoint]:
    return [_point(point) for point in line.points]


def _point(point: models.GeoPoint) -> edge.GeoPoint:
    return edge.GeoPoint(point.lon, point.lat)


def _values_count(bounds: models.ValuesCount) -> edge.ValuesCount:
    for bound in (bounds.lt, bounds.gt, bounds.gte, bounds.lte):
        _check_natural("a bound of values_count", bound)
    return edge.ValuesCount(lt=bounds.lt, gt=bounds.gt, lte=bounds.lte, gte=bounds.gte)


def _check_int64(values: Iterable[int | str]) -> None:
    for value in values:
        if isinstance(value, int) and value not in INT64:
            raise RequestError(f"{value} is no signed 64-bit number, so no payload can match it")


def _check_natural(name: str, value: int | None) -> None:
    if value is not None and not 0 <= value < 2**63:
        raise RequestError(f"{name} must be a number from 0 up, got {value}")


def check_finite(name: str, value: float | None) -> None:
    """Reject NaN and infinity.

    JSON cannot express them, but Python's parsers accept them.

    Raises:
        RequestError: the value is not finite.
    """
    if value is not None and not isfinite(value):
        raise RequestError(f"{name} must be finite, got {value}")
