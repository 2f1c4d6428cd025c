"""List the runs in progress and those about to start."""

from collections.abc import Sequence
from functools import partial

from nicegui import ui

from flows.console.components.run_card import RunCard, confirm_cancel
from flows.console.components.run_snapshot import RunSnapshot, RunWatcher, name_of
from flows.console.context import ConsoleContext
from flows.console.format import ago
from flows.console.keyed_list import Child, KeyedList
from storage.postgres.runs import Run


class ActiveRuns:
    """Show the runs in progress and scheduled next, updated in place."""

    def __init__(
        self, context: ConsoleContext, watch: RunWatcher, flows: Sequence[str] | None = None, idle: str = ""
    ) -> None:
        """Build the elements at the current place.

        Args:
            flows: only runs of these flows; None for all.
            idle: message if there are none.
        """
        self._context, self._watch, self._flows, self._idle = context, watch, flows, idle
        with ui.element("div").classes("sl-column") as self._where:
            self._cards, self._lines = (
                KeyedList[object](ui.element("div").classes("sl-column")) for _ in range(2)
            )
        self._shown: dict[object, RunCard] = {}

    def show(self, snapshot: RunSnapshot) -> None:
        """Show the runs of a snapshot."""
        own = [run for run in snapshot.runs if self._is_wanted(name_of(run))]
        self._cards.show([(run.id, None, partial(self._card, run)) for run in own])
        for run in own:
            self._shown[run.id].show(run, snapshot)
        self._lines.show(self._lines_of(snapshot, is_idle=not own and snapshot.postgres_problem is None))

    def _lines_of(self, snapshot: RunSnapshot, *, is_idle: bool) -> list[Child[object]]:
        lines: list[tuple[object, str]] = [
            (one.id, f"{one.flow} starts soon: accepted, it waits for its process ({one.state.lower()})")
            for one in snapshot.soon
            if self._is_wanted(one.flow)
        ]
        if is_idle and not lines and self._idle:
            lines.append(("idle", self._idle))
        for one in snapshot.skipped:
            if self._is_wanted(one.flow):
                lines.append((one.id, f"{one.flow} was skipped {ago(one.at, snapshot.at)}: {one.why}"))
        return [(key, text, partial(_line, text)) for key, text in lines]

    def _is_wanted(self, flow: str) -> bool:
        return self._flows is None or flow in self._flows

    def _card(self, run: Run) -> ui.element:
        card = self._shown[run.id] = RunCard(run, partial(self._cancel, run))
        return card.element

    async def _cancel(self, run: Run) -> None:
        with self._where:  # the card may be gone by the time of the answer
            if await confirm_cancel(self._context, run):
                self.show(await self._watch.refresh())


def _line(text: str) -> ui.element:
    return ui.label(text).classes("sl-faint")
