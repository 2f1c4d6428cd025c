from uuid import UUID

from sqlalchemy.orm import Session

from flows.resources.connections import Deps
from storage.postgres import catalog, facets
from storage.records import Digest, Item
from tests.support.builders import an_item


def save(session: Session, *items: Item) -> list[UUID]:
    catalog.save_items(session, {item.id: (item, Digest("c", "r")) for item in items})
    return [item.id for item in items]


def test_sources_are_those_that_have_something_left(deps: Deps):
    with deps.sessions.begin() as session:
        _, gone, *_ = save(session, *(an_item("a", source=name) for name in ("shop", "old", "books")))
        save(session, an_item("b", source="shop"))
        catalog.tombstone(session, [gone], asked=True)

        assert facets.sources(session) == ["books", "shop"]


def test_before_anything_there_is_nothing_to_narrow_by(deps: Deps):
    with deps.sessions() as session:
        assert (facets.sources(session), facets.metadata(session)) == ([], [])


def test_fields_come_with_their_most_frequent_values_as_one_would_type_them(deps: Deps):
    kept = [
        {"kind": "poem", "year": 1798},
        {"kind": "song", "year": 1798},
        {"kind": "song", "tags": ["a", "b"]},
    ]
    left_out = {"long": "x" * 100, "nothing": None, "deep": {"in": "side"}, "sold": True}
    with deps.sessions.begin() as session:
        items = [an_item(str(number), metadata=one) for number, one in enumerate([*kept, left_out])]
        save(session, *items)
        gone = save(session, an_item("gone", metadata={"kind": "secret"}))
        catalog.tombstone(session, gone, asked=True)

        found = facets.metadata(session)

    pairs = [
        ("kind", "song"),
        ("kind", "poem"),
        ("sold", "true"),
        ("tags", "a"),
        ("tags", "b"),
        ("year", "1798"),
    ]
    assert found == pairs


def test_a_field_with_many_values_shows_only_some(deps: Deps):
    with deps.sessions.begin() as session:
        save(session, *(an_item(str(number), metadata={"price": number}) for number in range(20)))

        assert len(facets.metadata(session)) == facets.VALUES_A_FIELD
