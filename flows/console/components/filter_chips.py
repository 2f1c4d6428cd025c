"""Show filter links with counts."""

from collections import Counter
from collections.abc import Callable

from nicegui import ui


class Chips:
    """Show a row of filter links."""

    def __init__(self, title: str, chosen: str | None, address_of: Callable[[str | None], str]) -> None:
        self._chosen, self._address_of = chosen, address_of
        self._links: dict[str | None, ui.link] = {}
        self._place = ui.element("nav").classes("sl-chips")
        self._place.props["aria-label"] = title
        self._title = title

    def show(self, counts: Counter[str]) -> None:
        """Show these counts; links are rebuilt only if the names change."""
        if self._chosen is not None and self._chosen not in counts:
            counts = counts + Counter()
            counts[self._chosen] = 0
        texts: dict[str | None, str] = {None: f"All {self._title.lower()} · {counts.total():,}"}
        texts |= {name: f"{name} · {count:,}" for name, count in counts.most_common()}
        if texts.keys() != self._links.keys():
            self._make(texts)
        for name, text in texts.items():
            self._links[name].set_text(text)

    def _make(self, texts: dict[str | None, str]) -> None:
        self._place.clear()
        with self._place:
            self._links = {name: ui.link("", self._address_of(name)).classes("sl-chip") for name in texts}
        self._links[self._chosen].props('aria-current="true"')
