"""Stacked combining marks take no extra time in untrusted texts."""

import time
from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from flows.api.request_models import IngestRequest, SearchRequest
from flows.search.query import BadText, Query, search
from storage.records import Rejected
from storage.sources import read_source
from storage.sources.unicode_marks import MAX_MARKS, TooManyMarks, composed, has_many_marks
from storage.sources.validation import MAX_TEXT_CHARS, BadRow, checked_key, checked_texts
from tests.support.builders import a_folder, a_manifest, png

PAIR = "\N{COMBINING ACUTE ACCENT}\N{COMBINING CEDILLA}"
"""Two marks that have to change places, so that sorting many of them takes the square of their number."""

STACK = "a" + PAIR * 160_000
LONGEST_S = 1.0


def quick(work: Callable[[], object]) -> None:
    began = time.process_time()
    work()
    assert time.process_time() - began < LONGEST_S


@pytest.mark.parametrize(
    ("mark", "length"),
    [
        *((PAIR, MAX_TEXT_CHARS - 1), ("\N{TIBETAN VOWEL SIGN II}", MAX_TEXT_CHARS - 1)),
        ("\N{COMBINING GREEK DIALYTIKA TONOS}", MAX_TEXT_CHARS - 1),
        *((PAIR, 320_000), ("\N{TIBETAN VOWEL SIGN II}", 320_000)),
    ],
)
def test_a_text_of_marks_is_refused_at_once(mark: str, length: int):
    text = "a" + (mark * length)[:length]

    def refuse() -> None:
        with pytest.raises(BadRow) as caught:
            checked_texts([(text, None)])
        assert caught.value.reason == ("text_too_long" if length > MAX_TEXT_CHARS else "bad_text")

    quick(refuse)


def test_marks_in_a_key_a_language_and_many_texts_are_refused_at_once():
    many = [("a" + PAIR * 16_000, None)] * 1000

    def refuse() -> None:
        for work in (
            lambda: checked_key(STACK[:1000]),
            lambda: checked_texts([("a cat", STACK)]),
            lambda: checked_texts([("a cat", STACK[:60])]),
            lambda: checked_texts(many),
        ):
            with pytest.raises(BadRow):
                work()

    quick(refuse)


def test_sources_set_aside_what_is_made_of_marks_and_read_on(tmp_path: Path):
    rows = [{"key": "a", "text": STACK}, {"key": STACK[:500], "text": "a cat"}, {"key": "c", "text": "a cat"}]
    manifest = a_manifest(tmp_path / "shop.jsonl", rows)
    name = "a" + PAIR * 40 + ".png"
    folder = a_folder(tmp_path / "folder", {name: png(), "b.png": png(), "b.txt": STACK})

    def read() -> None:
        found = [*read_source(manifest), *read_source(folder)]
        assert [one.reason if isinstance(one, Rejected) else "taken" for one in found] == [
            *("text_too_long", "bad_key", "taken"),
            *("bad_key", "text_too_long"),
        ]

    quick(read)


def test_the_api_says_what_is_wrong_with_a_text_of_marks():
    def refuse() -> None:
        with pytest.raises(ValidationError, match="combining marks in a row"):
            SearchRequest(text=STACK[:20_000])
        with pytest.raises(ValidationError, match="combining marks in a row"):
            IngestRequest.model_validate(
                {"source": "shop", "records": [{"key": STACK[:500], "texts": ["a"]}]}
            )
        sent = IngestRequest.model_validate(
            {"source": "shop", "records": [{"key": "a", "texts": [STACK] * 10, "metadata": {"m": STACK}}]}
        )
        row = sent.records[0].as_row()
        assert isinstance(row, Rejected)
        assert row.reason == "text_too_long"

    quick(refuse)


@pytest.mark.parametrize("text", [STACK, STACK[:1000]])
def test_a_search_refuses_such_a_text_before_a_model_sees_it(text: str):
    def refuse() -> None:
        with pytest.raises(BadText, match=r"search by|leave them out"):
            search(None, Query(text))  # type: ignore[arg-type]  # it needs no store to know that

    quick(refuse)


@given(st.text(st.characters(categories=["Mn", "Mc", "Lu", "Zs"]), max_size=80))
def test_what_is_not_refused_is_normalised_as_unicode_has_it(text: str):
    if has_many_marks(text):
        with pytest.raises(TooManyMarks):
            composed(text)
    else:
        assert composed(text) == normalize("NFC", text)


def test_languages_that_stack_marks_are_taken():
    thai, hebrew, zalgo = "ที่นี่", "בְּרֵאשִׁ֖ית", "a" + PAIR[0] * MAX_MARKS

    found = checked_texts([(thai, "th"), (hebrew, "he"), (zalgo, None)])

    assert [text.text for text in found] == [normalize("NFC", text) for text in (thai, hebrew, zalgo)]
