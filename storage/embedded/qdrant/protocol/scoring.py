"""Convert scoring queries from the REST API's models to the engine's."""

from datetime import date

import qdrant_edge as edge
from qdrant_client import models

from storage.embedded.qdrant.protocol.average_vector import average
from storage.embedded.qdrant.protocol.diversity import diversity
from storage.embedded.qdrant.protocol.errors import Invalid, RequestError
from storage.embedded.qdrant.protocol.examples import Examples, pairs, prefetches, typed_query
from storage.embedded.qdrant.protocol.filters import check_finite, to_filter
from storage.embedded.qdrant.protocol.formulas import to_formula
from storage.embedded.qdrant.protocol.named_vectors import Fields

DEFAULT_RRF_K = 2
MAX_EF = 2**32 - 1

ScoringQuery = (
    edge.Query | edge.Fusion | edge.OrderBy | edge.Formula | edge.Sample | edge.Mmr | edge.TextQuery
)


def scoring_query(query: models.Query, examples: Examples, limit: int) -> ScoringQuery:
    """Convert a query to the engine's form; ids become vectors.

    Args:
        limit: how many results the stage wants; MMR picks from as many candidates unless it says otherwise.
    """
    match query:
        case models.NearestQuery(nearest=given, mmr=None):
            return edge.Query.Nearest(examples.vector(given), examples.using)
        case models.NearestQuery(nearest=given, mmr=models.Mmr() as mmr):
            return _mmr(mmr, given, examples, limit)
        case models.FusionQuery(fusion=fusion):
            return _rrf(models.Rrf()) if fusion is models.Fusion.RRF else _fusion(edge.Fusion.Dbsf())
        case models.RrfQuery(rrf=rrf):
            return _rrf(rrf)
        case models.OrderByQuery(order_by=order):
            return order_by(order)
        case models.FormulaQuery():
            return to_formula(query, examples.target.spaces.fields)
        case models.SampleQuery():
            return edge.Sample.Random
        case models.TextQuery(text=text):
            return _text(text, examples.using)
    return _by_examples(query, examples)


def check_stage(stage: models.QueryRequest | models.QueryGroupsRequest | models.Prefetch) -> None:
    """Reject thresholds, fusions and prefetches without effect, as a server does."""
    query = typed_query(stage.query)
    if query is None and prefetches(stage):
        raise RequestError("A query is needed to merge the prefetches")
    if stage.score_threshold is not None and query is None:
        raise RequestError("A query is needed to use the score_threshold")
    if stage.score_threshold is not None and isinstance(query, models.OrderByQuery):
        raise RequestError("Can't use score_threshold with an order_by query")
    if stage.using and isinstance(query, models.FusionQuery | models.RrfQuery):
        raise RequestError("Fusion queries cannot be combined with the 'using' field")


def order_by(given: models.OrderByInterface) -> edge.OrderBy:
    """Convert an order by a payload field to the engine's form."""
    if isinstance(given, str):
        return edge.OrderBy(given)
    direction = edge.Direction.Desc if given.direction is models.Direction.DESC else edge.Direction.Asc
    start = given.start_from
    return edge.OrderBy(given.key, direction, start.isoformat() if isinstance(start, date) else start)


def search_params(given: models.SearchParams | None, fields: Fields) -> edge.SearchParams | None:
    """Convert search parameters to the engine's form."""
    if given is None:
        return None
    if given.hnsw_ef is not None and given.hnsw_ef < 1:
        raise Invalid(f"hnsw_ef must be 1 or larger, got {given.hnsw_ef}")
    return edge.SearchParams(
        hnsw_ef=None if given.hnsw_ef is None else min(given.hnsw_ef, MAX_EF),
        exact=given.exact or False,
        quantization=_quantization(given.quantization),
        indexed_only=given.indexed_only or False,
        acorn=_acorn(given.acorn),
        idf=_idf(given.idf, fields),
    )


def _mmr(mmr: models.Mmr, given: models.VectorInput, examples: Examples, limit: int) -> edge.Mmr:
    wanted = diversity(mmr, limit)
    return edge.Mmr(examples.vector(given), wanted.relevance, wanted.candidates, examples.using)


def _rrf(rrf: models.Rrf) -> edge.Fusion:
    k = DEFAULT_RRF_K if rrf.k is None else rrf.k
    if not 1 <= k < 2**32:
        raise RequestError(f"rrf k must be 1 or larger, got {k}")
    for weight in rrf.weights or ():
        check_finite("a weight of the fusion", weight)
    return _fusion(edge.Fusion.Rrf(k, rrf.weights))


def _fusion(kind: object) -> edge.Fusion:
    # The engine's classes derive from Fusion; its stubs forget to say so.
    if not isinstance(kind, edge.Fusion):
        raise TypeError(f"{kind!r} is no fusion")
    return kind


def _text(text: models.TextInterface, field: str) -> edge.TextQuery:
    if not field:
        raise RequestError("a text query needs the payload field to search, in 'using'")
    if isinstance(text, str):
        return edge.TextQuery(field, text)
    if text.scoring is None:
        return edge.TextQuery(field, text.query)
    return edge.TextQuery(field, text.query, edge.Bm25Params(text.scoring.bm25.k, text.scoring.bm25.b))


def _by_examples(query: models.Query, examples: Examples) -> edge.Query:
    using = examples.using
    match query:
        case models.RecommendQuery(recommend=given):
            return _recommend(given, examples)
        case models.DiscoverQuery(discover=given):
            target = examples.vector(given.target)
            return edge.Query.Discover(edge.DiscoverQuery(target, _pairs(given.context, examples)), using)
        case models.ContextQuery(context=context):
            return edge.Query.Context(edge.ContextQuery(_pairs(context, examples)), using)
        case models.RelevanceFeedbackQuery(relevance_feedback=given):
            return edge.Query.FeedbackNaive(_feedback(given, examples), using)
    raise RequestError(f"the query is a {type(query).__name__}, which is no query")


def _recommend(given: models.RecommendInput, examples: Examples) -> edge.Query:
    positive, negative = examples.vectors(given.positive), examples.vectors(given.negative)
    if given.strategy in (None, models.RecommendStrategy.AVERAGE_VECTOR):
        return edge.Query.Nearest(average(positive, negative), examples.using)
    if not positive and not negative:
        raise RequestError("At least one positive or negative vector is required with this strategy")
    both = edge.RecommendQuery(positive, negative)
    if given.strategy is models.RecommendStrategy.BEST_SCORE:
        return edge.Query.RecommendBestScore(both, examples.using)
    return edge.Query.RecommendSumScores(both, examples.using)


def _pairs(
    context: list[models.ContextPair] | models.ContextPair, examples: Examples
) -> list[edge.ContextPair]:
    return [
        edge.ContextPair(examples.vector(pair.positive), examples.vector(pair.negative))
        for pair in pairs(context)
    ]


def _feedback(given: models.RelevanceFeedbackInput, examples: Examples) -> edge.FeedbackNaiveQuery:
    if not given.feedback:
        raise Invalid("relevance feedback needs at least one item of feedback")
    naive = given.strategy.naive
    for number in (naive.a, naive.b, naive.c, *(item.score for item in given.feedback)):
        check_finite("a number of the feedback", number)
    if naive.b < 0:
        raise RequestError(f"naive feedback b must be 0 or larger, got {naive.b}")
    return edge.FeedbackNaiveQuery(
        examples.vector(given.target),
        [edge.FeedbackItem(examples.vector(item.example), item.score) for item in given.feedback],
        edge.NaiveFeedbackStrategy(naive.a, naive.b, naive.c),
    )


def _quantization(given: models.QuantizationSearchParams | None) -> edge.QuantizationSearchParams | None:
    if given is None:
        return None
    if given.oversampling is not None and not given.oversampling >= 1:
        raise RequestError(f"oversampling must be 1 or larger, got {given.oversampling}")
    return edge.QuantizationSearchParams(given.ignore or False, given.rescore, given.oversampling)


def _acorn(given: models.AcornSearchParams | None) -> edge.AcornSearchParams | None:
    if given is None:
        return None
    if given.max_selectivity is not None and not 0 <= given.max_selectivity <= 1:
        raise RequestError(f"acorn max_selectivity must be from 0 to 1, got {given.max_selectivity}")
    return edge.AcornSearchParams(given.enable or False, given.max_selectivity)


def _idf(given: models.IdfParams | None, fields: Fields) -> edge.IdfParams | None:
    if given is None:
        return None
    corpus = given.corpus if isinstance(given, models.IdfCorpusParams) else None
    return edge.IdfParams(to_filter(corpus, fields))
