"""Children of an element, kept up to date in place: what has the focus, or is read, stays as it is."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from nicegui import ui

Key = TypeVar("Key", bound=Hashable)
Child = tuple[Key, Hashable, Callable[[], ui.element]]
"""Its key, what it shows, and what makes it."""


@dataclass(frozen=True, slots=True)
class RenderedChild:
    """One child of a `Kept`, and what it shows."""

    element: ui.element
    state: Hashable


class KeyedList(Generic[Key]):
    """The children of an element, each under a key; those that show the same as before stay on the page."""

    def __init__(self, within: ui.element) -> None:
        self._within = within
        self._shown: dict[Key, RenderedChild] = {}

    def show(self, wanted: Sequence[Child[Key]]) -> None:
        """Have the element show these, in this order.

        Args:
            wanted: of each its key, what it shows, and what makes it; it is made again only when it shows
                something else.
        """
        keys = {key for key, _, _ in wanted}
        for key in [key for key in self._shown if key not in keys]:
            self._shown.pop(key).element.delete()
        for place, (key, state, make) in enumerate(wanted):
            known = self._shown.get(key)
            if known is None or known.state != state:
                if known is not None:
                    known.element.delete()
                with self._within:
                    known = self._shown[key] = RenderedChild(make(), state)
            if self._within.default_slot.children[place] is not known.element:
                known.element.move(target_index=place)


def box(make: Callable[[str], None], sentence: str) -> ui.element:
    """Return an element that holds what `make` shows."""
    with ui.element("div") as around:
        make(sentence)
    return around
