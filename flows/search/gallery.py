"""Render search results as one self-contained HTML page."""

import base64
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from io import BytesIO

from jinja2 import Environment, StrictUndefined, Template
from PIL import Image

from embedding.images.decode import BadImage
from embedding.images.preparation import PIXELS, Downscale
from embedding.images.worker_pool import Workers
from storage.redaction import has_secret

THUMBNAIL_SIDE = 480
JPEG_QUALITY = 82
NOUNS = {"images": ("image", "images"), "texts": ("text", "texts")}


@dataclass(frozen=True, slots=True)
class Card:
    """Represent one hit of the page."""

    key: str
    source: str
    score: float
    """A cosine in [-1, 1], higher is closer."""

    text: str
    uri: str | None
    image: bytes | None
    """The encoded image as it is stored; None for a text-only item or an image that is not stored."""


@dataclass(frozen=True, slots=True)
class Page:
    """Represent a query and its hits, best first."""

    query_text: str | None
    query_image: bytes | None
    find: str
    """Type of the results: `images` or `texts`."""

    model: str
    gallery_size: int
    """Number of searched items."""

    cards: tuple[Card, ...]


@dataclass(frozen=True, slots=True)
class PageImage:
    """Represent an image small enough to embed in the page."""

    uri: str
    width: int
    height: int


def render(page: Page) -> str:
    """Render the page as HTML, with styles and images inside.

    The page runs no script and sends no request.

    An image that is missing or cannot be decoded is replaced by its text.
    """
    singular, plural = NOUNS[page.find]
    with Workers(Downscale(THUMBNAIL_SIDE), 0) as workers:
        query_image = _thumbnail(workers, page.query_image, "query")
        thumbnails = [_thumbnail(workers, card.image, card.key) for card in page.cards]
    return _template().render(
        page=page,
        title=_title(page, plural),
        noun=singular if len(page.cards) == 1 else plural,
        query_image=query_image,
        tiles=[
            (card, thumbnail, share, _link(card.uri))
            for card, thumbnail, share in zip(page.cards, thumbnails, _shares(page.cards), strict=True)
        ],
    )


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(files("flows.search").joinpath("gallery.html").read_text("utf-8"))


def _title(page: Page, plural: str) -> str:
    return page.query_text or f"{plural.capitalize()} closest to an image"


def _shares(cards: tuple[Card, ...]) -> list[float]:
    """Return each score as a share of the best, in [0, 1].

    The range of cosines differs between models (the best hits of CLIP reach 0.3), so that a bar
    relative to 1 would show little.
    """
    best = max((card.score for card in cards), default=0)
    return [max(0.0, card.score / best) if best > 0 else 0.0 for card in cards]


def _link(uri: str | None) -> str | None:
    """Return `uri` if it is safe to click: http without a secret."""
    if uri is None or has_secret(uri):
        return None
    return uri if uri.lower().startswith(("https://", "http://")) else None


def _thumbnail(workers: Workers, data: bytes | None, name: str) -> PageImage | None:
    if data is None:
        return None
    try:
        image = Image.fromarray(workers.submit(data, name=name).result().features[PIXELS])
    except BadImage:
        return None
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return PageImage(f"data:image/jpeg;base64,{encoded}", *image.size)
