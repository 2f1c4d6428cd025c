"""Deciding what a batch needs. Pure: plain mappings in, a plan out."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from storage.records import Digest


@dataclass(frozen=True, slots=True)
class Plan:
    """The work that turns what is stored into what is wanted; ids are sorted."""

    embed: tuple[UUID, ...]
    """New, or with other content: these cost the model."""

    update: tuple[UUID, ...]
    """Their vectors are right; the row and the payload are not."""

    unchanged: tuple[UUID, ...]


def plan_batch(wanted: Mapping[UUID, Digest], marked: Mapping[UUID, Digest]) -> Plan:
    """Compare digests id by id, never by content: two items may swap their texts in one batch.

    Args:
        wanted: what the source says now, by item id.
        marked: what each stored point was made from, by item id; without a point, no entry.
    """
    embed, update, unchanged = [], [], []
    for id, digest in sorted(wanted.items()):
        stored = marked.get(id)
        if stored is None or stored.content != digest.content:
            embed.append(id)
        elif stored.record != digest.record:
            update.append(id)
        else:
            unchanged.append(id)
    return Plan(tuple(embed), tuple(update), tuple(unchanged))
