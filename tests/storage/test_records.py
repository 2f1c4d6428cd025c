from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.records import Text, digest_of, item_id
from tests.support.builders import a_record, an_item

names = st.text(max_size=20)


def test_an_id_never_changes_between_releases():
    assert item_id("shop", "shoes/1000268201.jpg") == UUID("488b98a7-2485-5a13-9dbc-d5c7fd0fe6a4")


@given(st.tuples(names, names), st.tuples(names, names))
def test_different_records_have_different_ids(left: tuple[str, str], right: tuple[str, str]):
    assert (item_id(*left) == item_id(*right)) == (left == right)


@pytest.mark.parametrize(
    ("left", "right"),
    [(("a", "b_c"), ("a_b", "c")), (("", "x"), ("x", "")), (("1_2", "3"), ("1", "2_3"))],
)
def test_parts_of_an_id_cannot_run_into_each_other(left: tuple[str, str], right: tuple[str, str]):
    assert item_id(*left) != item_id(*right)


def test_a_changed_caption_or_picture_changes_what_the_vectors_depend_on():
    record = a_record(texts=["a cat"])

    digests = {
        digest_of(record, "1" * 64).content,
        digest_of(record, "2" * 64).content,
        digest_of(record, None).content,
        digest_of(a_record(texts=["a dog"]), "1" * 64).content,
        digest_of(a_record(texts=["a cat", "a dog"]), "1" * 64).content,
    }

    assert len(digests) == 5


def test_a_changed_translation_or_price_costs_no_model():
    record = replace(a_record(), texts=(Text("a cat"), Text("Katze", "de", embedded=False)))
    reworded = replace(record, texts=(Text("a cat"), Text("eine Katze", "de", embedded=False)))
    cheaper = replace(record, metadata={"price": 3})

    before, after, later = (digest_of(one, None) for one in (record, reworded, cheaper))

    assert before.content == after.content == later.content
    assert len({before.record, after.record, later.record}) == 3


def test_an_item_is_shown_by_its_first_embedded_text():
    item = replace(an_item(), texts=(Text("Katze", "de", embedded=False), Text("a cat")))

    assert item.short_text == "a cat"
    assert item.embedded_texts == ("a cat",)


def test_an_item_without_embedded_text_is_shown_by_what_it_has():
    item = replace(an_item(), texts=(Text("Katze", "de", embedded=False),))

    assert (item.short_text, item.embedded_texts) == ("Katze", ())
    assert an_item(texts=()).short_text == ""
