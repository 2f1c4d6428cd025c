"""What a run tells of its speed: rates, what it waited for, and the one thing to turn."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from flows.cli.tables.records import of_ingest
from flows.config.settings import Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.report import as_markdown
from flows.ingestion.request import Request
from flows.ingestion.throughput import Throughput, throughput_of
from flows.resources.connections import Deps
from storage.postgres import runs
from tests.support.builders import a_folder, png

seconds = st.floats(0, 1000)


def of_stages(
    stages: dict[str, float], *, workers: int = 2, peak_device_mib: float | None = None, records: int = 100
) -> Throughput:
    """Return the speed of a run that took ten seconds."""
    return throughput_of(
        stages,
        seconds=10,
        records=records,
        pictures=records // 2,
        workers=workers,
        peak_device_mib=peak_device_mib,
    )


def test_rates_are_over_the_whole_run():
    speed = of_stages({"embed": 9}, records=100)

    assert (speed.records_per_s, speed.pictures_per_s) == (10, 5)


def test_decoding_is_as_busy_as_its_processes_are():
    assert of_stages({"decode": 10}, workers=4).busy == {"decode": 0.25}
    assert of_stages({"decode": 10}, workers=0).busy == {"decode": 1}  # a thread


@given(stages=st.dictionaries(st.sampled_from(["read", "decode", "embed", "upsert", "mark"]), seconds))
def test_stages_are_told_busiest_first_and_never_above_all_of_the_time(stages: dict[str, float]):
    speed = of_stages(stages)

    shares = list(speed.busy.values())
    assert shares == sorted(shares, reverse=True)
    assert all(0 <= share <= 1 for share in shares)
    assert speed.busy.keys() == stages.keys()
    assert speed.bottleneck == next(iter(speed.busy), "none")


@pytest.mark.parametrize(
    ("stages", "gpu_mib", "says"),
    [
        ({"embed": 9.5, "decode": 4}, None, "the model was the limit, as it should be: a GPU"),
        ({"embed": 9.5, "decode": 4}, 900.0, "only a faster GPU"),
        ({"embed": 5, "decode": 19}, None, "raise SIGHTLINE_DECODE_WORKERS above 2"),
        ({"embed": 5, "read": 9}, None, "a faster disk or network"),
        ({"embed": 5, "upsert": 9}, None, "Qdrant was the limit"),
        ({"embed": 5, "store": 9}, None, "Postgres was the limit"),
        ({"embed": 5, "mark": 9}, None, "Postgres was the limit"),
        ({"embed": 4, "upsert": 3}, None, "too short to fill them all"),
        ({}, None, "too short to fill them all"),
    ],
)
def test_advice_names_what_to_turn(stages: dict[str, float], gpu_mib: float | None, says: str):
    assert says in of_stages(stages, peak_device_mib=gpu_mib).advice


def test_a_run_of_no_time_at_all_has_a_speed():
    speed = throughput_of({}, seconds=0, records=0, pictures=0, workers=2, peak_device_mib=None)

    assert (speed.records_per_s, speed.busy, speed.bottleneck) == (0, {}, "none")


def test_peak_memory_is_the_most_that_this_process_held_whatever_it_holds_now():
    probe = """
from flows.ingestion.throughput import peak_memory_mib
before = peak_memory_mib()
held = b"x" * (200 * 2**20)
del held
print(peak_memory_mib() - before)
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)

    assert 190 < float(done.stdout) < 250


def test_a_speed_survives_json():
    speed = of_stages({"embed": 9, "decode": 4}, peak_device_mib=12.5)

    assert Throughput(**json.loads(json.dumps(speed.as_json()))) == speed


def test_a_run_tells_its_speed_on_record_in_its_table_and_on_its_page(
    deps: Deps, settings: Settings, tmp_path: Path
):
    folder = a_folder(tmp_path / "shop", {f"{n}.png": png("red", (16, 16 + n)) for n in range(5)})

    report = ingest_source(deps, settings, Request(folder))

    assert {"read", "decode", "plan", "store", "embed", "upsert", "mark"} == report.speed.busy.keys()
    assert report.speed.records_per_s == report.speed.pictures_per_s > 0
    for shown in (text_of(of_ingest(report)), as_markdown(report)):
        assert "records a second" in shown
        assert report.speed.advice in shown
    with deps.sessions() as session:
        last = runs.last_ingest(session)
    assert last is not None
    assert Throughput(**last.counts["speed"]).busy.keys() == report.speed.busy.keys()


def text_of(shown: RenderableType) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(shown)
    return captured.get()
