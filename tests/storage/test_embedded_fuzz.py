"""Acknowledged writes survive random requests and kills, and all collections open."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from storage.embedded.qdrant.process.client import start
from tests.storage.test_embedded_life import kill

NAMES = ["one", "two", "three"]
ROUNDS, REQUESTS = 2, 110
DEPTHS = (
    0,
    1,
    2,
    5,
    29,
    30,
    31,
    40,
    41,
    59,
    60,
    61,
    62,
    64,
    100,
    121,
    123,
    124,
    125,
    126,
    127,
    128,
    140,
    300,
)
NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    2.5,
    1e300,
    -1e-300,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**64,
    10**30,
)
WORDS = (
    "",
    "a",
    "b.c",
    "a[0]",
    "a[]",
    "[",
    "a..b",
    '"q"',
    "\0",
    "ü" * 90,
    "ü" * 101,
    "x" * 200,
    "x" * 256,
    "/",
    "..",
    "😀",
)
ANY = (None, True, False, [], {}, "a", 1, 1.5, [[]], {"a": None})

Json = Any


class Sender:
    """Draws requests, from good ones to nonsense, and sends them."""

    def __init__(self, seed: int, http: httpx.Client) -> None:
        self.draw = Random(seed)
        self.http = http
        self.answers: dict[int, int] = {}

    def send(self) -> None:
        """Send one request to a route that writes."""
        routes: list[Callable[[], None]] = [
            *[self.upsert] * 4,
            *[self.by_points_or_filter] * 4,
            self.batch,
            self.update_vectors,
            self.vector_name,
            self.index,
            self.collection,
            self.update_collection,
            self.aliases,
        ]
        self.draw.choice(routes)()

    def request(self, method: str, path: str, body: Json = None) -> None:
        if self.draw.random() < 0.15:
            body = self.spoiled(body)
        try:
            content = json.dumps(body, allow_nan=self.draw.random() < 0.5)
        except ValueError:
            return
        answer = self.http.request(method, path, content=content)
        assert answer.status_code != 500, (method, path, content[:300], answer.text[:500])
        self.answers[answer.status_code] = self.answers.get(answer.status_code, 0) + 1

    def spoiled(self, body: Json) -> Json:
        """Put something else in one place of a body."""
        if isinstance(body, dict) and body and self.draw.random() < 0.9:
            name = self.draw.choice(list(body))
            return {**body, name: self.spoiled(body[name])}
        if isinstance(body, list) and body and self.draw.random() < 0.9:
            place = self.draw.randrange(len(body))
            return [*body[:place], self.spoiled(body[place]), *body[place + 1 :]]
        return self.draw.choice([*ANY, *NUMBERS, *WORDS, self.nested()])

    def nested(self) -> Json:
        value: Json = self.draw.choice((*NUMBERS, *WORDS, None, True))
        for _ in range(self.draw.choice(DEPTHS)):
            value = [value] if self.draw.random() < 0.3 else {self.draw.choice("abk"): value}
        return value

    def payload(self) -> Json:
        values = {self.draw.choice((*WORDS, "a", "b", "k")): self.scalar() for _ in range(3)}
        return {**values, "deep": self.nested()} if self.draw.random() < 0.5 else values

    def scalar(self) -> Json:
        return self.draw.choice((*NUMBERS, *WORDS, *ANY))

    def filter(self) -> Json:
        keys = ("a", "b.c", "deep.k")
        leaves: list[Json] = [
            {"key": self.draw.choice(keys), "match": {"value": self.draw.choice((1, "a", True))}},
            {"key": self.draw.choice(keys), "match": {"any": [1, 2]}},
            {"key": self.draw.choice(keys), "range": {"gte": self.draw.choice(NUMBERS)}},
            {"key": self.draw.choice(WORDS), "is_empty": True},
            {"has_id": [self.id(), self.id()]},
            {"is_null": {"key": "a"}},
        ]
        value: Json = {"must": [self.draw.choice(leaves)]}
        kinds: list[Callable[[Json], Json]] = [
            lambda inner: {"must": [inner]},
            lambda inner: {"should": inner},
            lambda inner: {"must_not": [inner, self.draw.choice(leaves)]},
            lambda inner: {"min_should": {"conditions": [inner], "min_count": 1}},
            lambda inner: {"must": [{"nested": {"key": "a", "filter": inner}}]},
        ]
        kind = self.draw.choice(kinds)
        for _ in range(self.draw.choice((0, 0, 0, *DEPTHS[:18]))):
            value = kind(value)
        return value

    def id(self) -> Json:
        return self.draw.choice((0, 1, 2, 3, 4, 5, 6, 7, 2**64 - 1))

    def vectors(self) -> Json:
        dense = [self.draw.choice((0.5, 1, -2)) for _ in range(self.draw.choice((2, 2, 2, 3)))]
        sparse = {"indices": [self.draw.choice((0, 5, 2**32 - 1))], "values": [0.5]}
        choices: list[Json] = [{"a": dense}, {"a": dense, "s": sparse}, {"s": sparse}, {}, {"x": dense}]
        return self.draw.choice(choices)

    def points(self) -> Json:
        return [
            {"id": self.id(), "vector": self.vectors(), "payload": self.payload()}
            for _ in range(self.draw.choice((1, 1, 2, 5)))
        ]

    def upserted(self) -> Json:
        body: Json = {"points": self.points()}
        if self.draw.random() < 0.3:
            body["update_filter"] = self.filter()
        return body

    def chosen(self) -> Json:
        return {"points": [self.id()]} if self.draw.random() < 0.5 else {"filter": self.filter()}

    def set(self) -> Json:
        key = {"key": self.path()} if self.draw.random() < 0.4 else {}
        return {"payload": self.payload(), **key, **self.chosen()}

    def path(self) -> str:
        return ".".join("k" * self.draw.choice(DEPTHS)) or self.draw.choice(WORDS)

    def upsert(self) -> None:
        self.request("PUT", f"{self.where()}/points", self.upserted())

    def by_points_or_filter(self) -> None:
        method, path, body = self.draw.choice(
            [
                ("POST", "points/payload", self.set()),
                ("PUT", "points/payload", self.set()),
                ("POST", "points/payload/delete", {"keys": [self.path()], **self.chosen()}),
                ("POST", "points/payload/clear", self.chosen()),
                ("POST", "points/delete", self.chosen()),
                ("POST", "points/vectors/delete", {"vector": ["a"], **self.chosen()}),
            ]
        )
        self.request(method, f"{self.where()}/{path}", body)

    def batch(self) -> None:
        steps: list[Json] = [
            {"upsert": self.upserted()},
            {"set_payload": self.set()},
            {"delete": self.chosen()},
            {"delete_payload": {"keys": [self.path()], **self.chosen()}},
        ]
        self.request("POST", f"{self.where()}/points/batch", {"operations": self.draw.choices(steps, k=2)})

    def update_vectors(self) -> None:
        body = {"points": [{"id": self.id(), "vector": self.vectors()}], "update_filter": self.filter()}
        self.request("PUT", f"{self.where()}/points/vectors", body)

    def vector_name(self) -> None:
        if self.draw.random() < 0.3:
            self.request("DELETE", f"{self.where()}/vectors/{self.draw.choice('dez')}")
            return
        name = quote(self.draw.choice((*WORDS[1:], "d", "e", "s")), safe="")
        size = self.draw.choice((0, 1, 2, 65_536, 65_537, 10**9, 2**40, 2**63, -1))
        dense = {"dense": {"size": size, "distance": self.draw.choice(("Dot", "Cosine"))}}
        self.request("PUT", f"{self.where()}/vectors/{name}", self.draw.choice((dense, {"sparse": {}})))

    def index(self) -> None:
        kinds = ("keyword", "integer", "float", "bool", "geo", "datetime", "text", "uuid")
        schema: Json = self.draw.choice(kinds)
        if self.draw.random() < 0.5:
            schema = {
                "type": schema,
                "on_disk": True,
                "is_tenant": True,
                "max_token_len": self.draw.choice(NUMBERS),
            }
        field = self.draw.choice((*WORDS, "a", "b", "k", self.path()))
        if self.draw.random() < 0.7:
            self.request("PUT", f"{self.where()}/index", {"field_name": field, "field_schema": schema})
        else:
            self.request("DELETE", f"{self.where()}/index/{quote(field, safe='')}")

    def collection(self) -> None:
        name = self.draw.choice(("new", *WORDS[1:]))
        vectors = {
            self.draw.choice((*WORDS, "d")): {"size": self.draw.choice((0, 2, 65_537)), "distance": "Dot"}
        }
        body = {
            "vectors": vectors,
            "sparse_vectors": {self.draw.choice((*WORDS, "s")): {}},
            "metadata": self.payload(),
            "hnsw_config": {"m": self.draw.choice((0, 4, 16)), "ef_construct": self.draw.choice(NUMBERS)},
        }
        self.request("PUT", f"/collections/{quote(name, safe='')}", body)

    def update_collection(self) -> None:
        body = {
            "metadata": self.payload(),
            "optimizers_config": {"indexing_threshold": self.draw.choice(NUMBERS)},
            "hnsw_config": {"ef_construct": self.draw.choice(NUMBERS)},
        }
        self.request("PATCH", self.where(), body)

    def aliases(self) -> None:
        alias = {"alias_name": self.draw.choice(WORDS), "collection_name": self.draw.choice(NAMES)}
        renamed = {"old_alias_name": self.draw.choice(WORDS), "new_alias_name": self.draw.choice(WORDS)}
        actions: list[Json] = [{"create_alias": alias}, {"rename_alias": renamed}]
        self.request("POST", "/collections/aliases", {"actions": self.draw.choices(actions, k=2)})

    def where(self) -> str:
        return f"/collections/{self.draw.choice(NAMES)}"


def held(http: httpx.Client) -> dict[str, Json]:
    """The responses of each collection to reads: points, count, settings, a search."""
    names = [one["name"] for one in read(http, "GET", "/collections")["collections"]]
    return {name: held_in(http, f"/collections/{quote(name, safe='')}") for name in names}


def held_in(http: httpx.Client, path: str) -> Json:
    info = read(http, "GET", path)
    assert info["status"] in ("green", "yellow"), info
    everything = {"limit": 1000, "with_vector": True, "with_payload": True}
    return (
        info["config"],
        sorted(info["payload_schema"]),
        read(http, "POST", f"{path}/points/scroll", everything)["points"],
        read(http, "POST", f"{path}/points/count", {"exact": True}),
        len(read(http, "POST", f"{path}/points/query", {"limit": 100})["points"]),
    )


def read(http: httpx.Client, method: str, path: str, body: Json = None) -> Json:
    answer = http.request(method, path, json=body)
    assert answer.status_code == 200, (path, answer.text[:500])
    return answer.json()["result"]


def client_of(home: Path) -> httpx.Client:
    access = start(home)
    return httpx.Client(base_url=access.url, headers={"api-key": access.key}, timeout=60)


@pytest.mark.parametrize(
    ("seed", "rounds", "requests"),
    [(1, ROUNDS, REQUESTS), *(pytest.param(seed, 5, 1000, marks=pytest.mark.full) for seed in range(2, 6))],
)
def test_what_was_acknowledged_is_there_after_a_kill(home: Path, seed: int, rounds: int, requests: int):
    answers: dict[int, int] = {}
    for round in range(rounds):
        with client_of(home) as http:
            for name in NAMES if not round else ():
                vectors = {"vectors": {"a": {"size": 2, "distance": "Dot"}}, "sparse_vectors": {"s": {}}}
                read(http, "PUT", f"/collections/{name}", vectors)
            sender = Sender(seed * 100 + round, http)
            for _ in range(requests):
                sender.send()
            before = held(http)
        kill(home)
        with client_of(home) as http:
            assert held(http) == before
        for status, number in sender.answers.items():
            answers[status] = answers.get(status, 0) + number

    assert not (home / "qdrant" / "aside").exists()
    assert answers[200] > rounds * requests / 8
    assert answers[400] > rounds * requests / 8
