"""A search result as one HTML page that needs nothing but itself."""

import base64
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from io import BytesIO

from jinja2 import Environment, StrictUndefined, Template
from PIL import Image

from embedding.images.decode import BadImage
from embedding.images.preparation import PIXELS, Shrink
from embedding.images.worker_pool import Workers
from storage.redaction import has_secret

THUMBNAIL_SIDE = 480
JPEG_QUALITY = 82
NOUNS = {"images": ("picture", "pictures"), "texts": ("text", "texts")}


@dataclass(frozen=True, slots=True)
class Card:
    """One hit, as it is shown; the first card is the best hit."""

    key: str
    source: str
    score: float
    """A cosine in [-1, 1], higher is closer."""

    text: str
    uri: str | None
    picture: bytes | None
    """The encoded image as it is stored; None for a text-only item or an image that isn't kept."""


@dataclass(frozen=True, slots=True)
class Page:
    """A query and its hits, best first."""

    query_text: str | None
    query_picture: bytes | None
    find: str
    """What was searched among: `images` or `texts`."""

    model: str
    gallery_size: int
    """How many items were searched among."""

    cards: tuple[Card, ...]


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A image small enough to stand inside the page."""

    uri: str
    width: int
    height: int


def render(page: Page) -> str:
    """Return the page as HTML with its styles and images inside; it runs no script and asks no server.

    An image that is missing or cannot be decoded is no reason to fail: its text stands in its place.
    """
    singular, plural = NOUNS[page.find]
    with Workers(Shrink(THUMBNAIL_SIDE), 0) as workers:
        query_picture = _thumbnail(workers, page.query_picture, "query")
        thumbnails = [_thumbnail(workers, card.picture, card.key) for card in page.cards]
    return _template().render(
        page=page,
        title=_title(page, plural),
        noun=singular if len(page.cards) == 1 else plural,
        query_picture=query_picture,
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
    return page.query_text or f"{plural.capitalize()} closest to a picture"


def _shares(cards: tuple[Card, ...]) -> list[float]:
    """Return each score as a share of the best, in [0, 1].

    What counts as a high cosine differs between models (CLIP's best hits reach 0.3), so a bar
    drawn to the scale of 1 would say nothing.
    """
    best = max((card.score for card in cards), default=0)
    return [max(0.0, card.score / best) if best > 0 else 0.0 for card in cards]


def _link(uri: str | None) -> str | None:
    """Return `uri` where it is safe to click on: http, and without a password or a token."""
    if uri is None or has_secret(uri):
        return None
    return uri if uri.lower().startswith(("https://", "http://")) else None


def _thumbnail(workers: Workers, picture: bytes | None, name: str) -> Thumbnail | None:
    if picture is None:
        return None
    try:
        image = Image.fromarray(workers.submit(picture, name=name).result().features[PIXELS])
    except BadImage:
        return None
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Thumbnail(f"data:image/jpeg;base64,{encoded}", *image.size)
