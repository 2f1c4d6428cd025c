"""The comparison of two streams agrees with a look-up by id."""

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from storage.consistency.differences import (
    CatalogEntry,
    Difference,
    PointEntry,
    compare,
    find_difference,
    id_order,
)
from storage.records import Digest

ids = st.integers(0, 7).map(lambda number: UUID(int=number << 124 | number))
digests = st.sampled_from([Digest("a", "x"), Digest("a", "y"), Digest("b", "x")])
entries = st.builds(
    CatalogEntry, ids, st.just("s"), st.just("k"), digests, st.none() | digests, st.booleans(), st.booleans()
)
points = st.builds(PointEntry, ids | st.integers(0, 3), st.none() | digests, st.booleans(), st.booleans())


def in_order(things: list) -> list:
    return sorted({thing.id: thing for thing in things}.values(), key=lambda thing: id_order(thing.id))


@given(st.lists(entries), st.lists(points), st.booleans())
def test_one_walk_in_step_finds_what_looking_up_each_id_finds(items: list, found: list, complete: bool):
    items, found = in_order(items), in_order(found)
    entry_of, point_of = {one.id: one for one in items}, {one.id: one for one in found}

    differences = list(compare(items, found, complete=complete))

    every = sorted(entry_of.keys() | point_of.keys(), key=id_order)
    judged = [find_difference(entry_of.get(id), point_of.get(id), complete=complete) for id in every]
    assert differences == [one for one in judged if one is not None]


@given(entries)
def test_a_point_that_is_what_its_item_and_its_mark_say_is_right(entry: CatalogEntry):
    point = PointEntry(entry.id, entry.wanted, entry.image, entry.text)
    marked = CatalogEntry(entry.id, "s", "k", entry.wanted, entry.wanted, entry.image, entry.text)

    assert find_difference(marked, point, complete=True) is None


ONE = UUID(int=1)
NEW, OLD = Digest("new", "r"), Digest("old", "r")


def kind(
    mark: Digest | None, point: PointEntry | None, *, complete: bool = True, image: bool = True
) -> str | None:
    found = find_difference(
        CatalogEntry(ONE, "s", "k", NEW, mark, image, text=True), point, complete=complete
    )
    return found and found.kind


def test_each_kind_of_difference_has_its_name():
    right = PointEntry(ONE, NEW, image=True, text=True)

    assert kind(NEW, right) is None
    assert kind(NEW, None) == "missing"
    assert kind(NEW, PointEntry(ONE, OLD, image=True, text=True)) == "stale"
    assert kind(NEW, PointEntry(ONE, None, image=True, text=True)) == "stale"
    assert kind(NEW, right, image=False) == "wrong_vectors"
    assert kind(OLD, right) == kind(None, right) == kind(None, None) == "pending"
    assert find_difference(None, right, complete=True) == Difference("stray", ONE, None, right)


def test_a_collection_that_is_not_searched_owes_only_what_its_marks_promise():
    old = PointEntry(ONE, OLD, image=True, text=True)

    assert kind(OLD, old, complete=False) is None
    assert kind(OLD, None, complete=False) == "missing"
    assert kind(None, None, complete=False) is None
