from pathlib import Path

import pytest
from pydantic import SecretStr

from flows.config.settings import BadSettings, Settings, load_settings


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
        ("SIGHTLINE_SCHEDULES__PROVE", "0 0 * * *", r"set SIGHTLINE_BACKUP_URL to a folder"),
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


def a_secret(folder: Path, name: str, value: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"{value}\n")


def test_secrets_may_be_files_named_as_their_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    a_secret(tmp_path, "sightline_database_url", "postgresql+psycopg://me:hunter2@db/sightline")
    a_secret(tmp_path, "sightline_qdrant__api_key", "hunter3")
    a_secret(tmp_path, "SIGHTLINE_CONSOLE__PASSWORD", "hunter4 and more")
    a_secret(tmp_path, "grafana_password", "of somebody else")
    monkeypatch.setenv("SIGHTLINE_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("SIGHTLINE_QDRANT__URL", "http://qdrant:6333")

    settings = load_settings()

    assert settings.database_url.get_secret_value() == "postgresql+psycopg://me:hunter2@db/sightline"
    assert settings.qdrant.url == "http://qdrant:6333"
    assert settings.qdrant.api_key.get_secret_value() == "hunter3"
    assert settings.console.password.get_secret_value() == "hunter4 and more"
    assert "hunter" not in repr(settings)


def test_a_variable_counts_more_than_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    a_secret(tmp_path, "sightline_qdrant__api_key", "from the file")
    monkeypatch.setenv("SIGHTLINE_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("SIGHTLINE_QDRANT__API_KEY", "from the variable")

    assert load_settings().qdrant.api_key.get_secret_value() == "from the variable"


def test_secrets_as_kubernetes_mounts_them_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    a_secret(tmp_path / "..2026_11_26", "sightline_qdrant__api_key", "hunter3")
    (tmp_path / "..data").symlink_to("..2026_11_26")
    (tmp_path / "sightline_qdrant__api_key").symlink_to("..data/sightline_qdrant__api_key")
    monkeypatch.setenv("SIGHTLINE_SECRETS_DIR", str(tmp_path))

    assert load_settings().qdrant.api_key.get_secret_value() == "hunter3"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "sightline_databse_url",
            r"SIGHTLINE_DATABSE_URL is no setting.*did you mean SIGHTLINE_DATABASE_URL",
        ),
        ("sightline_qdrant__key", r"SIGHTLINE_QDRANT__KEY: Extra inputs"),
        ("sightline_batch_size", r"SIGHTLINE_BATCH_SIZE: Input should be a valid integer"),
    ],
)
def test_a_file_that_would_be_ignored_or_misread_is_an_error_that_names_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
):
    a_secret(tmp_path, name, "hunter2")
    monkeypatch.setenv("SIGHTLINE_SECRETS_DIR", str(tmp_path))

    with pytest.raises(BadSettings, match=says):
        load_settings()


def test_a_folder_of_secrets_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SIGHTLINE_SECRETS_DIR", str(tmp_path / "gone"))

    with pytest.raises(BadSettings, match=r"SIGHTLINE_SECRETS_DIR: .*does not exist"):
        load_settings()


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("postgresql://me:pw@db/shop", "postgresql+psycopg://me:pw@db/shop"),
        (
            "postgres://me:pw@db:5433/shop?sslmode=require",
            "postgresql+psycopg://me:pw@db:5433/shop?sslmode=require",
        ),
        ("postgresql+psycopg://db/shop", "postgresql+psycopg://db/shop"),
        ("postgresql://me:a?b/c@[::1]:5432/shop", "postgresql+psycopg://me:a?b/c@[::1]:5432/shop"),
        ("postgresql:///shop?host=/run/postgres", "postgresql+psycopg:///shop?host=/run/postgres"),
        ("postgresql://db?dbname=shop", "postgresql+psycopg://db?dbname=shop"),
    ],
)
def test_a_url_of_postgres_as_providers_print_it_means_the_driver_that_is_here(given: str, read: str):
    assert Settings(database_url=SecretStr(given)).database_url.get_secret_value() == read


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://me:hunter2@db/shop", "mysql:// is no Postgres"),
        ("sqlite:///shop.db", "sqlite:// is no Postgres"),
        ("postgresql+psycopg2://me:hunter2@db/shop", r"postgresql\+psycopg2:// is no Postgres"),
        ("db.example/shop", "this is no URL; write postgresql://"),
        ("postgresql://me:hunter2@db", "names no database"),
        ("postgresql://me:hunter2@db/", "names no database"),
        ("postgresql://me:hunter2@db/?sslmode=require", "names no database"),
        ("postgresql://me:hunter2@one:1,two:2/shop", "several hosts as"),
        ("postgresql://me:hunter2@db:port/shop", "port cannot be read"),
    ],
)
def test_a_url_of_no_postgres_database_is_refused_with_the_form_and_without_the_password(
    monkeypatch: pytest.MonkeyPatch, url: str, says: str
):
    monkeypatch.setenv("SIGHTLINE_DATABASE_URL", url)

    with pytest.raises(BadSettings, match=f"SIGHTLINE_DATABASE_URL: .*{says}") as refused:
        load_settings()

    assert "hunter2" not in f"{refused.value} {refused.value.__cause__}"
