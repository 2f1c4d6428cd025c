"""Plan the changes of one batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from storage.records import Digest


@dataclass(frozen=True, slots=True)
class Plan:
    """Partition the ids of a batch by the necessary work.

    Each part is sorted.
    """

    embed: tuple[UUID, ...]
    """New items, or items with other content: the model encodes these."""

    update: tuple[UUID, ...]
    """Items whose vectors are current, but whose row and payload are not."""

    unchanged: tuple[UUID, ...]


def plan_batch(wanted: Mapping[UUID, Digest], marked: Mapping[UUID, Digest]) -> Plan:
    """Compare digests by id.

    Content is never compared across ids: two items may swap their texts in one batch.

    Args:
        wanted: the digest of each record of the source, by item id.
        marked: the digest that each stored point was built from, by item id; no entry without a point.
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
