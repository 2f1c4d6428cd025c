from hypothesis import given
from hypothesis import strategies as st

from embedding.training.splits import Split

groups = st.text("0123456789abcdef", min_size=64, max_size=64)


@given(groups, st.integers(0, 2**32))
def test_a_group_is_always_on_the_same_side(group: str, seed: int):
    split = Split(seed)

    assert split.part_of(group, named=False) == Split.from_json(split.as_json()).part_of(group, named=False)


def test_the_shares_are_about_the_requested_ones():
    split = Split(held_out=0.2, validation=0.1)
    parts = [split.part_of(f"{number:064x}", named=False) for number in range(10_000)]

    assert abs(parts.count("held-out") / len(parts) - 0.2) < 0.02
    assert abs(parts.count("validation") / len(parts) - 0.1) < 0.02


@given(groups)
def test_more_held_out_never_brings_anything_back(group: str):
    if Split(held_out=0.2).part_of(group, named=False) == "held-out":
        assert Split(held_out=0.5).part_of(group, named=False) == "held-out"


def test_named_keys_are_held_out_and_nothing_else():
    split = Split(held_out=0.2, validation=0.0, keys=("a",))
    names = [f"{number:064x}" for number in range(200)]

    assert {split.part_of(name, named=True) for name in names} == {"held-out"}
    assert {split.part_of(name, named=False) for name in names} == {"train"}
