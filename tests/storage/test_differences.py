"""The comparison itself, on plain values: what one walk in step finds is what a dictionary finds."""

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from storage.consistency.differences import Difference, Held, Kept, compare, judge, order
from storage.records import Digest

ids = st.integers(0, 7).map(lambda number: UUID(int=number << 124 | number))
digests = st.sampled_from([Digest("a", "x"), Digest("a", "y"), Digest("b", "x")])
kepts = st.builds(
    Kept, ids, st.just("s"), st.just("k"), digests, st.none() | digests, st.booleans(), st.booleans()
)
helds = st.builds(Held, ids | st.integers(0, 3), st.none() | digests, st.booleans(), st.booleans())


def in_order(things: list) -> list:
    return sorted({thing.id: thing for thing in things}.values(), key=lambda thing: order(thing.id))


@given(st.lists(kepts), st.lists(helds), st.booleans())
def test_one_walk_in_step_finds_what_looking_up_each_id_finds(kept: list, held: list, complete: bool):
    kept, held = in_order(kept), in_order(held)
    items, points = {one.id: one for one in kept}, {one.id: one for one in held}

    found = list(compare(kept, held, complete=complete))

    every = sorted(items.keys() | points.keys(), key=order)
    judged = [judge(items.get(id), points.get(id), complete=complete) for id in every]
    assert found == [one for one in judged if one is not None]


@given(kepts)
def test_a_point_that_is_what_its_item_and_its_mark_say_is_right(kept: Kept):
    point = Held(kept.id, kept.wanted, kept.image, kept.text)
    marked = Kept(kept.id, "s", "k", kept.wanted, kept.wanted, kept.image, kept.text)

    assert judge(marked, point, complete=True) is None


ONE = UUID(int=1)
NEW, OLD = Digest("new", "r"), Digest("old", "r")


def kind(mark: Digest | None, held: Held | None, *, complete: bool = True, image: bool = True) -> str | None:
    found = judge(Kept(ONE, "s", "k", NEW, mark, image, text=True), held, complete=complete)
    return found and found.kind


def test_each_kind_of_difference_has_its_name():
    right = Held(ONE, NEW, image=True, text=True)

    assert kind(NEW, right) is None
    assert kind(NEW, None) == "missing"
    assert kind(NEW, Held(ONE, OLD, image=True, text=True)) == "stale"
    assert kind(NEW, Held(ONE, None, image=True, text=True)) == "stale"
    assert kind(NEW, right, image=False) == "wrong_vectors"
    assert kind(OLD, right) == kind(None, right) == kind(None, None) == "pending"
    assert judge(None, right, complete=True) == Difference("stray", ONE, None, right)


def test_a_collection_that_is_not_searched_owes_only_what_its_marks_promise():
    old = Held(ONE, OLD, image=True, text=True)

    assert kind(OLD, old, complete=False) is None
    assert kind(OLD, None, complete=False) == "missing"
    assert kind(None, None, complete=False) is None
