from pathlib import Path

import pytest

from flows.settings import BadSettings, load_settings


def test_with_nothing_set_everything_lives_in_the_current_folder():
    settings = load_settings()

    assert settings.home == Path(".sightline")
    assert (settings.database_url, settings.qdrant.url, settings.model) == (None, None, "starter")


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SIGHTLINE_LANGS", "en, de")
    monkeypatch.setenv("SIGHTLINE_QDRANT__URL", "http://qdrant:6333")
    monkeypatch.setenv("SIGHTLINE_QDRANT__FILTER_FIELDS", '{"year": "integer"}')

    settings = load_settings()

    assert settings.langs == ("en", "de")
    assert settings.qdrant.url == "http://qdrant:6333"
    assert settings.qdrant.filter_fields == {"year": "integer"}


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SIGHTLINE_QDRNAT__URL", "x", r"SIGHTLINE_QDRNAT__URL is no setting.*did you mean SIGHTLINE_QDRANT"),
        ("SIGHTLINE_QDRANT__ULR", "x", r"SIGHTLINE_QDRANT__ULR: Extra inputs"),
        ("SIGHTLINE_BATCH_SIZE", "0", r"SIGHTLINE_BATCH_SIZE: Input should be greater than or equal to 1"),
        (
            "SIGHTLINE_SCHEDULES__PURGE",
            "at noon",
            r"SIGHTLINE_SCHEDULES__PURGE: 'at noon' is no cron.*30 3 \* ",
        ),
        ("SIGHTLINE_SCHEDULES__PURGE", "61 * * * *", r"SIGHTLINE_SCHEDULES__PURGE: .* \(Bad minute\)"),
        ("SIGHTLINE_SCHEDULES__PURGE", "0 0 31 2 *", r"SIGHTLINE_SCHEDULES__PURGE: .*no cron"),
        ("SIGHTLINE_SCHEDULES__PURGE", "* * * * * *", r"SIGHTLINE_SCHEDULES__PURGE: .*no cron"),
        ("SIGHTLINE_SCHEDULES__PURGE", "0 0 * * 5L", r"SIGHTLINE_SCHEDULES__PURGE: .*no cron"),
        ("SIGHTLINE_SCHEDULES__SING", "0 0 * * *", r"SIGHTLINE_SCHEDULES__SING: Extra inputs"),
        ("SIGHTLINE_SCHEDULES__BACKUP", "0 0 * * *", r"set SIGHTLINE_BACKUP_URL to a folder"),
        ("SIGHTLINE_MAX_REJECT_SHARE", "half", r"SIGHTLINE_MAX_REJECT_SHARE: Input should be a valid number"),
    ],
)
def test_a_setting_that_would_be_ignored_or_misread_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
):
    monkeypatch.setenv(name, value)

    with pytest.raises(BadSettings, match=says):
        load_settings()


def test_a_schedule_is_a_cron_or_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SIGHTLINE_SCHEDULES__INGEST", "*/10 8-18 * * mon-fri")
    monkeypatch.setenv("SIGHTLINE_SCHEDULES__PURGE", "off")

    schedules = load_settings().schedules

    assert (schedules.ingest, schedules.purge) == ("*/10 8-18 * * mon-fri", None)


def test_no_password_shows_when_settings_are_printed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SIGHTLINE_DATABASE_URL", "postgresql+psycopg://me:hunter2@db/sightline")
    monkeypatch.setenv("SIGHTLINE_QDRANT__API_KEY", "hunter3")

    shown = repr(load_settings())

    assert "hunter" not in shown
