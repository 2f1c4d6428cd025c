"""Update children of an element in place, preserving focus and scroll position."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from nicegui import ui

Key = TypeVar("Key", bound=Hashable)
Child = tuple[Key, Hashable, Callable[[], ui.element]]
"""Its key, the state that it shows, and a function that builds it."""


@dataclass(frozen=True, slots=True)
class RenderedChild:
    """Represent a child of a `KeyedList` and the state that it shows."""

    element: ui.element
    state: Hashable


class KeyedList(Generic[Key]):
    """Manage children by key; unchanged ones stay on the page."""

    def __init__(self, within: ui.element) -> None:
        self._within = within
        self._shown: dict[Key, RenderedChild] = {}

    def show(self, wanted: Sequence[Child[Key]]) -> None:
        """Show these children in this order.

        Args:
            wanted: of each its key, its state, and a function that builds it, called when the state has
                changed.
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
    """Return an element with the content that `make` builds."""
    with ui.element("div") as around:
        make(sentence)
    return around
