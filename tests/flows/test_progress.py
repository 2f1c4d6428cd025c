"""Whoever watches a run reads in `runs` how far it is, and when it ends at this pace."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from flows.tracking.run_log import tracked_run
from storage.postgres import runs
from storage.postgres.locks import flow_lock
from storage.postgres.runs import StageProgress

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
counts = st.integers(0, 10**9)


def a_progress(done: int, total: int, *, first: int = 0, took_s: float = 10) -> StageProgress:
    return StageProgress("embed", done, total, NOON, first, NOON + timedelta(seconds=took_s))


def test_what_is_left_takes_as_long_as_what_is_done_did():
    halfway = a_progress(50, 100)

    assert halfway.remaining_s(halfway.at) == 10
    assert halfway.remaining_s(halfway.at + timedelta(seconds=4)) == 6


def test_what_was_done_before_anybody_looked_does_not_count_for_the_pace():
    resumed = a_progress(90, 100, first=80)

    assert resumed.remaining_s(resumed.at) == 10


def test_nobody_knows_when_a_stage_ends_that_has_no_length_or_has_not_moved():
    assert a_progress(50, 0).remaining_s(NOON) is None
    assert a_progress(0, 100).remaining_s(NOON) is None


@given(counts, counts, counts)
def test_a_progress_is_read_as_it_was_written(done: int, total: int, first: int):
    progress = a_progress(done, total, first=first)

    assert StageProgress.of_json(progress.as_json()) == progress


@given(counts, counts, counts, st.floats(0, 10**6))
def test_no_stage_ends_in_the_past(done: int, total: int, first: int, later_s: float):
    remaining = a_progress(done, total, first=first).remaining_s(NOON + timedelta(seconds=10 + later_s))

    assert remaining is None or remaining >= 0


def test_a_run_says_how_far_it_is_until_it_ends(engine: Engine):
    sessions = sessionmaker(engine)
    with tracked_run(sessions, flow_lock(engine, "evaluate"), "evaluate") as run:
        run.progress("texts", 3, 10)
        run.counts, run.seconds = {"read": 7}, {"embed": 1.5}
        run.progress("pictures", 1, 4)
        run.progress("pictures", 2, 4)  # within a second of the last: not put on record

        with Session(engine) as session:
            [meanwhile] = runs.running(session)
            assert runs.find_run(session, run.id) == meanwhile
    with Session(engine) as session:
        ended = runs.find_run(session, run.id)

    assert meanwhile.progress is not None
    assert (meanwhile.progress.stage, meanwhile.progress.done) == ("pictures", 1)
    assert (meanwhile.counts, meanwhile.seconds) == ({"read": 7}, {"embed": 1.5})
    assert ended is not None
    assert (ended.outcome, ended.progress) == ("completed", None)
