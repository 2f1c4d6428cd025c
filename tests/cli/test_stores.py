"""The commands that keep a home true, as a person and a script use them: output, JSON, exit codes."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from qdrant_client import QdrantClient
from sqlalchemy import Engine, text

from flows.cli import main
from flows.config.settings import load_settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.resources.connections import open_deps
from storage import qdrant
from storage.embedded.qdrant.process.discovery import find
from tests.conftest import emptied
from tests.support.builders import a_folder, a_manifest, encoded, noise, png
from tests.support.processes import environment_of
from tests.support.tiny_clip import write_tiny_clip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("tiny clip"))


@pytest.fixture(autouse=True)
def home(
    engine: Engine,
    embedded: QdrantClient,
    index_home: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """A home on the tests' Postgres and their index."""
    for name, value in environment_of(tmp_path / "home", engine.url, find(index_home), model).items():
        monkeypatch.setenv(name, value)
    yield from emptied(embedded)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Four pictures, two of them the same bytes, and a file that is none; taken in."""
    pictures = {"a.png": png("red"), "b.png": png("green"), "c.png": png("blue"), "copy.png": png("red")}
    folder = a_folder(tmp_path / "shop", pictures | {"bad.png": b"no picture"})
    settings = load_settings()
    with open_deps(settings) as deps:
        ingest_source(deps, settings, Request(folder))
    return folder


def sightline(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def said(*arguments: object, exit_code: int = 0) -> str:
    result = sightline(*arguments)
    assert result.exit_code == exit_code, result.stderr
    return result.stdout


def document(*arguments: object, exit_code: int = 0) -> dict:
    return json.loads(said(*arguments, "--json", exit_code=exit_code))


def lines(table: str) -> set[str]:
    """The lines of a table, whatever its columns' widths."""
    return {" ".join(line.split()) for line in table.splitlines()}


@pytest.mark.usefixtures("shop")
class TestDelete:
    def test_a_dry_run_counts_by_source_and_deletes_nothing(self):
        assert document("delete", "a.png", "b.png", "--dry-run") == {"would_delete": {"shop": 2}}
        assert {"items source", "2 shop"} <= lines(said("delete", "a.png", "b.png", "--dry-run"))
        assert document("status")["items"]["items"] == 4

    def test_the_table_counts_what_went_and_names_the_receipt(self):
        told = said("delete", "a.png")

        assert {"1 items", "1 embedding states", "1 images: kept for another item"} <= lines(told)
        receipt = Path("".join(told.split("receipt:")[1].split()))
        assert [item["key"] for item in json.loads(receipt.read_text())["items"]] == ["a.png"]

    def test_json_is_the_receipt(self):
        receipt = document("delete", "--source", "shop")

        assert receipt["totals"]["items"] == 4
        assert receipt["totals"]["pictures"] == {"removed": 4}
        assert receipt["asked"] == {"keys": [], "source": "shop", "where": {}}

    def test_a_key_that_is_not_there_is_an_error_with_its_name(self):
        result = sightline("delete", "nowhere.png")

        assert result.exit_code == 1
        assert result.stderr == "Error: no item has the key 'nowhere.png'; nothing was deleted\n"


@pytest.mark.usefixtures("home")
def test_a_field_that_no_item_has_is_named_with_near_names_in_search_and_delete(tmp_path: Path):
    rows = [{"key": f"{n}", "text": "red", "colour": "red"} for n in range(3)]
    rows[-1]["rare"] = "yes"
    with open_deps(load_settings()) as deps:
        ingest_source(deps, load_settings(), Request(a_manifest(tmp_path / "shop.jsonl", rows)))
    search = ("search", "red", "--find", "texts")

    def warned(*arguments: object) -> list[str]:
        result = sightline(*arguments)
        assert result.exit_code == 0, result.stderr
        return [line for line in result.stderr.splitlines() if "--where" in line]

    mistyped = "No item has the field 'color' of --where; did you mean colour?"
    assert warned(*search, "--where", "color=red", "--where", "source=shop") == [mistyped]
    assert warned(*search, "--where", "colour=red", "--where", "rare=no") == []
    assert warned("delete", "--where", "color=red", "--dry-run") == [mistyped]
    assert warned("delete", "--where", "xyz=1", "--where", "source=shop") == [
        "No item has the field 'xyz' of --where; fields: colour, rare",
        "No item has the field 'source' of --where; this command takes --source NAME",
    ]


def test_a_delete_of_nothing_in_particular_is_wrong_usage():
    result = sightline("delete")

    assert result.exit_code == 2
    assert "it would be everything" in result.stderr


class TestReconcile:
    def lose_points(self, client: QdrantClient, many: int) -> None:
        points, _ = client.scroll(qdrant.ALIAS, limit=many)
        client.delete(qdrant.active_collection(client).name, [point.id for point in points], wait=True)

    @pytest.mark.usefixtures("shop")
    def test_stores_that_agree_exit_with_0(self):
        assert document("reconcile")["compared"] == {"items": 4, "points": 4, "pictures": 3}
        assert "They agree." in said("reconcile")

    @pytest.mark.usefixtures("shop")
    def test_stores_that_differ_exit_with_1_and_name_the_remedy(self, embedded: QdrantClient):
        self.lose_points(embedded, 2)

        assert document("reconcile", exit_code=1)["differences"]["missing"] == 2
        told = lines(said("reconcile", exit_code=1))
        assert "2 missing items whose point is gone from Qdrant" in told
        assert "repair them with: sightline reconcile --repair" in told

    @pytest.mark.usefixtures("shop")
    def test_a_repair_that_mends_all_exits_with_0(self, embedded: QdrantClient):
        self.lose_points(embedded, 2)

        assert "Repaired: they agree now." in said("reconcile", "--repair")
        assert document("reconcile")["differences"]["missing"] == 0

    @pytest.mark.usefixtures("shop")
    def test_a_repair_that_would_delete_much_is_refused_until_it_is_confirmed(self, engine: Engine):
        with engine.begin() as connection:
            connection.execute(text("delete from marks"))
            connection.execute(text("delete from items where key != 'a.png'"))

        refused = sightline("reconcile", "--repair")

        assert refused.exit_code == 1
        assert "would delete 3 of 4 points, more than 5%" in refused.stderr
        assert "--yes" in refused.stderr
        said("reconcile", "--repair", "--max-delete", "80%")

    def test_a_limit_that_is_no_percentage_is_wrong_usage(self):
        assert "write one such as 5%" in sightline("reconcile", "--max-delete", "many").stderr
        assert "not between 0% and 100%" in sightline("reconcile", "--max-delete", "101%").stderr


class TestRejects:
    def test_are_tried_again_alone_and_the_table_tells_what_became_of_them(self, shop: Path):
        a_folder(shop, {"bad.png": png("green", (9, 9)), "new.png": png("blue", (9, 9))})

        assert {"retried resolved open source", "1 1 0 shop"} <= lines(said("rejects", "retry"))
        assert document("rejects") == {"rejects": []}
        assert document("status")["items"]["items"] == 5

    @pytest.mark.usefixtures("shop")
    def test_of_another_reason_or_source_are_left_alone(self):
        assert document("rejects", "--source", "elsewhere") == {"rejects": []}
        assert document("rejects", "retry", "--reason", "too_large") == {"sources": []}
        assert len(document("rejects", "--source", "shop")["rejects"]) == 1

    def test_whose_source_is_gone_stay_open_and_exit_with_1(self, shop: Path):
        shop.rename(shop.with_name("moved"))

        (source,) = document("rejects", "retry", exit_code=1)["sources"]

        assert (source["tried"], source["open"]) == (1, 1)
        assert "shop" in source["problem"]

    def test_options_in_front_of_retry_are_wrong_usage(self):
        result = sightline("rejects", "--reason", "too_large", "retry")

        assert result.exit_code == 2
        assert "put the options after 'retry'" in result.stderr


@pytest.mark.usefixtures("shop")
class TestBackup:
    def test_lists_its_files_and_says_where_it_is(self, tmp_path: Path):
        told = said("backup", tmp_path / "backups")

        assert "4 items; images copied" in told
        assert f"backup: {tmp_path / 'backups'}" in told.replace("\n", "")
        assert document("backup", tmp_path / "backups")["items"] == 4

    def test_a_restore_over_something_is_refused(self, tmp_path: Path):
        said("backup", tmp_path / "backups")

        result = sightline("restore", tmp_path / "backups")

        assert result.exit_code == 1
        assert "restore into an empty SIGHTLINE_HOME" in result.stderr

    def test_a_restore_from_nothing_is_an_error_with_the_place(self, tmp_path: Path):
        result = sightline("restore", tmp_path)

        assert result.exit_code == 1
        assert str(tmp_path) in result.stderr


@pytest.mark.usefixtures("shop")
class TestDuplicates:
    def test_are_listed_by_group(self):
        groups = document("duplicates")["groups"]

        assert [[copy["key"] for copy in group] for group in groups] == [["a.png", "copy.png"]]
        assert "2 images in 1 group have the same bytes." in said("duplicates")

    def test_near_ones_are_told_as_such(self):
        assert "look alike" in said("duplicates", "--near")


@pytest.mark.usefixtures("shop")
class TestPurge:
    def test_removes_what_nothing_refers_to_and_a_dry_run_only_counts(self, tmp_path: Path):
        orphan = tmp_path / "home" / "pictures" / "ab" / "cd" / ("abcd" + 60 * "0")
        orphan.parent.mkdir(parents=True)
        orphan.write_bytes(b"nobody's")

        counted = {"pictures": 4, "orphans": 1, "unfinished": 0, "collections": [], "receipts": 0}
        assert document("purge", "--dry-run") == counted
        assert "more than 5%" in sightline("purge").stderr
        assert orphan.exists()
        assert document("purge", "--yes") == counted
        assert not orphan.exists()


class TestLifeOfAModel:
    """Commands over a set of twenty captioned pictures, and another model of random weights."""

    @pytest.fixture(autouse=True)
    def album(self, tmp_path: Path) -> None:
        files: dict[str, bytes | str] = {}
        for number in range(20):
            files |= {
                f"{number}.png": encoded(noise((40 + number, 40)), "PNG"),
                f"{number}.txt": f"a picture that is called {'ab'[number % 2] * (number + 1)}",
            }
        settings = load_settings()
        with open_deps(settings) as deps:
            ingest_source(deps, settings, Request(a_folder(tmp_path / "album", files)))

    @pytest.fixture
    def other(self, tmp_path: Path) -> Path:
        return write_tiny_clip(tmp_path / "other clip", seed=1)

    def test_two_models_are_compared_with_intervals(self, model: Path, other: Path):
        told = said("evaluate", "--model", model, "--model", other, "--held-out")
        [comparison] = document("evaluate", "--model", model, "--model", other, "--held-out")["comparisons"]

        assert "text to image, gallery" in told
        assert "below each figure its 95% interval, by bootstrap over records" in told
        assert (comparison["model"], comparison["over"]) == (str(other), str(model))

    def test_a_model_that_is_no_better_is_refused_unless_it_is_forced(self, model: Path, other: Path):
        refused = said("promote", other, exit_code=1)
        assert "failed" in refused
        assert "is not promoted; searches stay with" in " ".join(refused.split())
        assert "has not been promoted over" in sightline("reindex", "--model", other).stderr

        forced = document("promote", other, "--force")
        assert (forced["promoted"], forced["forced"]) == (True, True)
        assert forced["checks"][0]["name"] == "held-out"

        table = " ".join(said("models").split())
        assert "candidate" in table
        assert "promoted by force" in table
        latest, first = document("models")["models"]
        assert (latest["name"], latest["decided"]["over"]) == (str(other), str(model))
        assert list(first["collections"].values()) == ["active"]

        switched = document("reindex", "--model", other)
        assert (switched["written"], switched["recall"]) == (20, 1)
        assert document("status")["collection"]["model"] == str(other)
        back = document("rollback")
        assert (back["model"], back["written"]) == (str(model), 0)

    def test_what_is_no_model_is_an_error_that_names_it(self):
        assert "nowhere" in sightline("promote", "nowhere").stderr
        assert "nowhere" in sightline("evaluate", "--model", "nowhere").stderr
        assert "no earlier collection is kept" in sightline("rollback").stderr
