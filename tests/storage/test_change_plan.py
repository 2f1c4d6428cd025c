from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from storage.consistency.change_plan import Plan, plan_batch
from storage.records import Digest

A, B, C = (UUID(int=n) for n in (1, 2, 3))
digests = st.builds(Digest, st.sampled_from("xyz"), st.sampled_from("12"))
states = st.dictionaries(st.integers(0, 20).map(lambda n: UUID(int=n)), digests)


def carried_out(plan: Plan, wanted: dict[UUID, Digest], marked: dict[UUID, Digest]) -> dict[UUID, Digest]:
    return {**marked, **{id: wanted[id] for id in plan.embed + plan.update}}


def test_new_content_is_embedded_new_words_about_it_are_updated_and_the_rest_is_left_alone():
    wanted = {A: Digest("new", "1"), B: Digest("same", "2"), C: Digest("same", "1")}
    marked = {A: Digest("old", "1"), B: Digest("same", "1"), C: Digest("same", "1")}

    assert plan_batch(wanted, marked) == Plan(embed=(A,), update=(B,), unchanged=(C,))


def test_an_item_whose_content_moved_to_another_item_is_embedded_again():
    wanted = {A: Digest("new", "1"), B: Digest("old", "1")}

    assert plan_batch(wanted, {A: Digest("old", "1")}).embed == (A, B)


@given(states, states)
def test_carrying_out_a_plan_reaches_what_was_wanted(wanted: dict[UUID, Digest], marked: dict[UUID, Digest]):
    assert carried_out(plan_batch(wanted, marked), wanted, marked) == {**marked, **wanted}


@given(states)
def test_a_second_run_has_nothing_to_do(state: dict[UUID, Digest]):
    assert plan_batch(state, state) == Plan((), (), tuple(sorted(state)))


@given(states, states)
def test_every_item_has_one_place_in_the_plan(wanted: dict[UUID, Digest], marked: dict[UUID, Digest]):
    plan = plan_batch(wanted, marked)

    assert sorted(plan.embed + plan.update + plan.unchanged) == sorted(wanted)
