"""How a run ended: what counts as a failure, and which failures are reported."""

import json
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from flows.cli import main
from flows.evaluation.promotion_gate import AlreadyActive
from flows.maintenance.purge import TooManyOrphans
from flows.reindexing.reindex import NoPreviousCollection
from flows.tracking.run_log import outcome_of, tracked_run
from flows.tracking.signals import StopRequested, Terminated
from storage.errors import StoreUnavailable
from storage.postgres import runs
from storage.postgres.locks import flow_lock
from storage.postgres.runs import NoSuchFailure
from storage.qdrant import NoCollection
from storage.sources import BadSource


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (KeyboardInterrupt(), "cancelled"),
        (StopRequested(), "cancelled"),
        (Terminated(143), "cancelled"),
        (NoPreviousCollection("none is kept"), "refused"),
        (AlreadyActive("used already"), "refused"),
        (NoCollection(), "refused"),
        (TooManyOrphans("more than 5%"), "failed"),  # a schedule ran into it: a person must decide
        (BadSource("no such folder"), "failed"),  # it was there when the schedule was set
        (StoreUnavailable("no answer"), "failed"),
        (RuntimeError("a bug"), "failed"),
    ],
)
def test_an_error_decides_how_its_run_ended(error: BaseException, outcome: str):
    assert outcome_of(error) == outcome


def failing(engine: Engine) -> list[UUID]:
    with Session(engine) as session:
        return [run.id for run in runs.failed_runs(session)]


def record(engine: Engine, error: BaseException | None, flow: str = "rollback") -> runs.Run:
    """Record a run that ends by an error."""
    own = uuid4()
    try:
        with tracked_run(sessionmaker(engine), flow_lock(engine, flow), flow, run_id=own):
            if error is not None:
                raise error
    except BaseException as raised:
        if raised is not error:
            raise
    with Session(engine) as session:
        found = runs.find_run(session, own)
    assert found is not None
    return found


@pytest.mark.parametrize("error", [NoPreviousCollection("none is kept"), KeyboardInterrupt()])
def test_a_run_without_a_verdict_is_no_failure_and_hides_none(engine: Engine, error: BaseException):
    failed = record(engine, RuntimeError("the disk is full"))

    assert record(engine, error).outcome in runs.NO_VERDICT
    assert failing(engine) == [failed.id]

    record(engine, None)
    record(engine, error)
    assert failing(engine) == []


def test_an_acknowledged_failure_is_reported_no_more_but_the_next_one_is(engine: Engine):
    first, other = record(engine, RuntimeError()), record(engine, RuntimeError(), flow="purge")

    with Session(engine) as session, session.begin():
        assert runs.acknowledge(session, str(first.id)[:8]) == [first.id]
        assert runs.acknowledge(session, str(first.id)) == []
    assert failing(engine) == [other.id]

    second = record(engine, RuntimeError())
    assert failing(engine) == [second.id, other.id]

    with Session(engine) as session, session.begin():
        assert set(runs.acknowledge(session)) == {second.id, other.id}
    assert failing(engine) == []


@pytest.mark.parametrize("beginning", ["%", "ffffffff-", "no id"])
def test_only_a_failed_run_can_be_acknowledged(engine: Engine, beginning: str):
    completed = record(engine, None)

    with Session(engine) as session:
        for wrong in (beginning, str(completed.id)):
            with pytest.raises(NoSuchFailure, match=wrong):
                runs.acknowledge(session, wrong)


def test_an_id_that_several_failures_share_is_refused(engine: Engine):
    record(engine, RuntimeError())
    record(engine, RuntimeError())

    with Session(engine) as session, pytest.raises(NoSuchFailure, match="several"):
        runs.acknowledge(session, "")


def test_a_failure_in_the_status_is_acknowledged_by_the_id_that_stands_there(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SIGHTLINE_HOME", str(tmp_path))
    monkeypatch.setenv("SIGHTLINE_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("SIGHTLINE_QDRANT__URL", "http://127.0.0.1:9")  # the ledger needs no index
    failed = record(engine, RuntimeError("the disk is full"))
    sightline = CliRunner()

    seen = sightline.invoke(main, ["status"])
    assert str(failed.id)[:8] in seen.stdout, seen.output
    for wrong in ([], ["--all", str(failed.id)]):
        assert sightline.invoke(main, ["runs", "acknowledge", *wrong]).exit_code == 2
    done = sightline.invoke(main, ["runs", "acknowledge", str(failed.id)[:8]])

    assert (done.exit_code, done.stdout) == (0, "1 failed run acknowledged.\n")
    assert json.loads(sightline.invoke(main, ["status", "--json"]).stdout)["failed"] == []
    again = sightline.invoke(main, ["runs", "acknowledge", "--all", "--json"])
    assert json.loads(again.stdout) == {"acknowledged": []}
