"""Hits as cards, and what a search says about itself."""

from collections.abc import Callable
from typing import Any

from nicegui import ui

from flows.console.components.search_params import SearchParams
from flows.search.query import Found, Results
from flows.tracking.text import many

NOUNS = {"images": "picture", "texts": "text"}
PLAIN_CLICK = """(event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  emit();
}"""
"""A link that acts on the page, unless it is to be opened elsewhere."""


def card(one: Found, best: float, similar: str, more_like: Callable[[], Any]) -> None:
    """Show a hit.

    Args:
        best: the score of the best hit; what counts as high differs between models.
        similar: the address of a search for what is like it; `more_like` does the same on this page.
    """
    item = one.item
    with ui.element("article").classes("sl-card").props("role=listitem"):
        with ui.link(target=f"/records/{item.id}").classes("sl-card-face") as face:
            face.props["aria-label"] = f"Details of {item.key}"
            if item.picture is None:
                ui.label(one.text).classes("sl-card-words").props("dir=auto")
            else:
                image(f"/thumbnails/{item.id}?v={item.picture.sha256[:12]}", one.text or item.key)
        with ui.element("div").classes("sl-meter").props("aria-hidden=true"):
            share = max(0.0, one.hit.score / best) if best > 0 else 0.0
            ui.element("div").style(f"width: {min(1.0, share):.1%}")
        with ui.element("div").classes("sl-card-facts"):
            with ui.element("div").classes("sl-card-head"):
                ui.label(one.text if item.picture else "").classes("sl-card-text").props("dir=auto")
                ui.label(f"{one.hit.score:.3f}").classes("sl-card-score").tooltip("the cosine, at most 1")
            ui.label(item.key).classes("sl-card-key").props("dir=auto")
            ui.label(_which(one)).classes("sl-faint")
            link = ui.link("More like this", similar)
            link.props["aria-label"] = f"More like {item.key}"
            link.on("click", more_like, js_handler=PLAIN_CLICK)


def image(source: str, says: str) -> None:
    """Show an image of ours, loaded once it comes into view; `says` is what it shows."""
    shown = ui.element("img").props("loading=lazy decoding=async")
    shown.props["src"], shown.props["alt"] = source, says


def query_example(source: str | None, says: str, leave_out: Callable[[], Any]) -> None:
    """Show an image or a record that is searched by, and how to leave it out."""
    with ui.element("div").classes("sl-example"):
        if source is not None:
            image(source, "")
        ui.label(says).props("dir=auto")
        leave = ui.button(icon="close", on_click=leave_out).props("type=button flat round dense size=sm")
        leave.props["aria-label"] = f"Leave out: {says}"


def summary(results: Results) -> str:
    """Say how many hits there are, who answered, and how long it took."""
    took = results.took
    parts = (("encode", took.encode_s), ("Qdrant", took.index_s), ("Postgres", took.catalog_s))
    split = ", ".join(f"{name} {seconds * 1000:.0f}" for name, seconds in parts)
    hits = many(len(results.found), NOUNS[results.query.find])
    whole = f"{took.total_s * 1000:.0f} ms ({split})"
    return f"{hits} · model {results.model} · collection {results.collection} · {whole}"


def no_hits_text(params: SearchParams) -> str:
    """Say why nothing may have been found."""
    if params.where or params.min_score is not None:
        return "Nothing found. Leave out a filter, or lower the least score."
    return f"Nothing found: there is no record with a {NOUNS[params.find]} beside it that searches know."


def _which(one: Found) -> str:
    """Say where a hit comes from, and which of its texts is closest to the query."""
    texts = len(one.item.embedded_texts)
    if one.hit.best_text is None or texts < 2:
        return one.item.source
    return f"{one.item.source} · text {one.hit.best_text + 1} of {texts} is closest"
