"""Convert score formulas from the REST API's models to the engine's."""

from collections.abc import Callable
from math import isfinite
from typing import get_args

import qdrant_edge as edge
from qdrant_client import models

from storage.embedded.qdrant.protocol.errors import RequestError
from storage.embedded.qdrant.protocol.filters import to_condition
from storage.embedded.qdrant.protocol.named_vectors import Fields

MAX_DEPTH = 64
Expression = edge.Expression
DECAYS: dict[type, tuple[str, edge.DecayKind]] = {
    models.LinDecayExpression: ("lin_decay", edge.DecayKind.Lin),
    models.ExpDecayExpression: ("exp_decay", edge.DecayKind.Exp),
    models.GaussDecayExpression: ("gauss_decay", edge.DecayKind.Gauss),
}
OF_ONE: dict[type, tuple[str, Callable[[Expression], Expression]]] = {
    models.NegExpression: ("neg", Expression.Neg),
    models.AbsExpression: ("abs", Expression.Abs),
    models.SqrtExpression: ("sqrt", Expression.Sqrt),
    models.ExpExpression: ("exp", Expression.Exp),
    models.Log10Expression: ("log10", Expression.Log10),
    models.LnExpression: ("ln", Expression.Ln),
    models.AcoshExpression: ("acosh", Expression.Acosh),
}
OF_MANY: dict[type, tuple[str, Callable[[list[Expression]], Expression]]] = {
    models.MultExpression: ("mult", Expression.Mult),
    models.SumExpression: ("sum", Expression.Sum),
    models.MaxExpression: ("max", Expression.Max),
    models.MinExpression: ("min", Expression.Min),
}


def to_formula(query: models.FormulaQuery, fields: Fields) -> edge.Formula:
    """Convert a formula and its defaults to the engine's form.

    Raises:
        RequestError: it is nested deeper than `MAX_DEPTH`, or holds a number that is not finite.
    """
    return edge.Formula(_expression(query.formula, fields, 1), query.defaults or {})


def _expression(given: models.Expression, fields: Fields, depth: int) -> Expression:
    if depth > MAX_DEPTH:
        raise RequestError(f"the formula is nested deeper than {MAX_DEPTH} levels")
    if isinstance(given, get_args(models.Condition)):
        return Expression.Condition(to_condition(given, fields))
    kind = type(given)
    if kind in OF_ONE:
        name, make = OF_ONE[kind]
        return make(_expression(getattr(given, name), fields, depth + 1))
    if kind in OF_MANY:
        name, make_of_many = OF_MANY[kind]
        return make_of_many([_expression(part, fields, depth + 1) for part in getattr(given, name)])
    if kind in DECAYS:
        name, decay = DECAYS[kind]
        return _decay(decay, getattr(given, name), fields, depth)
    return _other(given, fields, depth)


def _other(given: models.Expression, fields: Fields, depth: int) -> Expression:
    match given:
        case float() | int():
            return Expression.Constant(_finite(given))
        case str():
            return Expression.Variable(given)
        case models.GeoDistance(geo_distance=way):
            return Expression.GeoDistance(edge.GeoPoint(way.origin.lon, way.origin.lat), way.to)
        case models.DatetimeExpression(datetime=instant):
            return Expression.Datetime(instant)
        case models.DatetimeKeyExpression(datetime_key=key):
            return Expression.DatetimeKey(key)
        case models.PowExpression(pow=power):
            return Expression.Pow(
                _expression(power.base, fields, depth + 1), _expression(power.exponent, fields, depth + 1)
            )
        case models.DivExpression(div=ratio):
            left, right = (
                _expression(ratio.left, fields, depth + 1),
                _expression(ratio.right, fields, depth + 1),
            )
            default = ratio.by_zero_default
            return Expression.Div(left, right, None if default is None else _finite(default))
    raise RequestError(f"the formula holds a {type(given).__name__}, which is no expression")


def _decay(
    kind: edge.DecayKind, given: models.DecayParamsExpression, fields: Fields, depth: int
) -> Expression:
    return Expression.Decay(
        kind,
        _expression(given.x, fields, depth + 1),
        None if given.target is None else _expression(given.target, fields, depth + 1),
        None if given.midpoint is None else _finite(given.midpoint),
        None if given.scale is None else _finite(given.scale),
    )


def _finite(number: float) -> float:
    if not isfinite(number):
        raise RequestError(f"a number in the formula must be finite, got {number}")
    return float(number)
