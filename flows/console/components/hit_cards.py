"""Show search hits as cards, and summarize a search."""

from collections.abc import Callable
from typing import Any

from nicegui import ui

from flows.console.components.search_params import SearchParams
from flows.search.query import FoundItem, Results
from flows.tracking.text import count_of

NOUNS = {"images": "image", "texts": "text"}
PLAIN_CLICK = """(event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  emit();
}"""
"""A link acts on the page, unless it is to be opened elsewhere."""


def card(one: FoundItem, best: float, similar: str, more_like: Callable[[], Any]) -> None:
    """Show a hit.

    Args:
        best: the score of the best hit; scores are not comparable between models.
        similar: the URL of a search for similar records; `more_like` does the same on this page.
    """
    item = one.item
    with ui.element("article").classes("sl-card").props("role=listitem"):
        with ui.link(target=f"/records/{item.id}").classes("sl-card-face") as face:
            face.props["aria-label"] = f"Details of {item.key}"
            if item.image is None:
                ui.label(one.text).classes("sl-card-words").props("dir=auto")
            else:
                image(f"/thumbnails/{item.id}?v={item.image.sha256[:12]}", one.text or item.key)
        with ui.element("div").classes("sl-meter").props("aria-hidden=true"):
            share = max(0.0, one.hit.score / best) if best > 0 else 0.0
            ui.element("div").style(f"width: {min(1.0, share):.1%}")
        with ui.element("div").classes("sl-card-facts"):
            with ui.element("div").classes("sl-card-head"):
                ui.label(one.text if item.image else "").classes("sl-card-text").props("dir=auto")
                ui.label(f"{one.hit.score:.3f}").classes("sl-card-score").tooltip(
                    "cosine similarity, at most 1"
                )
            ui.label(item.key).classes("sl-card-key").props("dir=auto")
            ui.label(_which(one)).classes("sl-faint")
            link = ui.link("More like this", similar)
            link.props["aria-label"] = f"More like {item.key}"
            link.on("click", more_like, js_handler=PLAIN_CLICK)


def image(source: str, says: str) -> None:
    """Show a lazily loaded image; `says` is its alternative text."""
    shown = ui.element("img").props("loading=lazy decoding=async")
    shown.props["src"], shown.props["alt"] = source, says


def query_example(source: str | None, says: str, remove: Callable[[], Any]) -> None:
    """Show the image or record of a query, with a remove button."""
    with ui.element("div").classes("sl-example"):
        if source is not None:
            image(source, "")
        ui.label(says).props("dir=auto")
        button = ui.button(icon="close", on_click=remove).props("type=button flat round dense size=sm")
        button.props["aria-label"] = f"Remove: {says}"


def summary(results: Results) -> str:
    """Summarize a search: hits, model, collection and latency."""
    took = results.took
    parts = (("encode", took.encode_s), ("Qdrant", took.index_s), ("Postgres", took.catalog_s))
    split = ", ".join(f"{name} {seconds * 1000:.0f}" for name, seconds in parts)
    hits = count_of(len(results.found), NOUNS[results.query.find])
    whole = f"{took.total_s * 1000:.0f} ms ({split})"
    return f"{hits} · model {results.model} · collection {results.collection} · {whole}"


def no_hits_text(params: SearchParams) -> str:
    """Explain an empty result."""
    if params.where or params.min_score is not None:
        return "Nothing found. Remove a filter, or lower the minimum score."
    return f"Nothing found: no searchable record with {NOUNS[params.find]}s matches."


def _which(one: FoundItem) -> str:
    """Return the source of a hit, and its closest text."""
    texts = len(one.item.embedded_texts)
    if one.hit.best_text is None or texts < 2:
        return one.item.source
    return f"{one.item.source} · text {one.hit.best_text + 1} of {texts} is closest"
