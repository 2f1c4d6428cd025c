"""Read the settings from the environment."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from flows.config.addresses import postgres_url
from flows.config.cron import checked_cron
from storage.data_directory import restrict
from storage.errors import InvalidInput
from storage.sources.host_rules import NO_RULES, HostRules
from storage.sources.read_options import ReadOptions

PREFIX = "SIGHTLINE_"
SECRETS_DIR = f"{PREFIX}SECRETS_DIR"
LONG_REQUEST_S = 3600
MOST_WORKERS = 16
"""Default; more pay only where the model is faster than these decode."""

OVERSAMPLING = 3.0
"""Candidates per hit, by default."""

FieldType = Literal["keyword", "integer", "float", "bool", "geo", "datetime", "text", "uuid"]
"""Types of Qdrant's payload indexes."""

Quantization = Literal["none", "int8", "turbo", "product", "binary"]
"""Quantization of the vectors of a first-stage search."""

TRACES_TO = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


@dataclass(frozen=True, slots=True)
class Limits:
    """Represent the limits of fetching one image."""

    max_picture_bytes: int
    fetch_timeout_s: float
    private_redirects: bool = False
    private_images: bool = False
    """Whether image URLs in API requests may lead into private networks."""

    links_within: Path | None = None
    """Folder that links of a source may lead into, resolved."""

    hosts: HostRules = NO_RULES


class BadSettings(InvalidInput):
    """Report a setting with an invalid value or an unknown name."""

    retryable = True
    http_status = 503


class Qdrant(BaseModel, frozen=True, extra="forbid"):
    """Define the settings of Qdrant."""

    url: str | None = Field(
        None, description="URL of a Qdrant server; unset: an embedded index in the data directory."
    )
    api_key: SecretStr | None = Field(None, description="API key of the Qdrant server.")
    timeout_s: int = Field(30, gt=0, description="Seconds that one request to Qdrant may take.")
    ca_file: Path | None = Field(
        None, description="CA certificates for an https server; unset: those of the system."
    )
    client_certificate: Path | None = Field(
        None, description="Client certificate with its private key, for servers that require one (mTLS)."
    )
    quantization: Quantization = Field(
        "none",
        description="Quantization of the first-stage search: none, int8, turbo, product or binary. May "
        "change at any time.",
    )
    short_dim: int | None = Field(
        None,
        gt=0,
        description="Leading dimensions of the first-stage search, for Matryoshka models. Set before the "
        "first ingest.",
    )
    oversampling: float = Field(
        OVERSAMPLING,
        ge=1,
        le=100,
        description="Candidates per hit of the first-stage search that are rescored with whole vectors.",
    )
    filter_fields: dict[str, FieldType] = Field(
        {},
        description='Metadata fields with a payload index, such as {"year": "integer"}. '
        "Set before the first ingest.",
    )


class PromotionGate(BaseModel, frozen=True, extra="forbid"):
    """Define the thresholds of the promotion gate."""

    margin: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Lower bound required of the 95% confidence interval of the recall@10 gain on "
        "held-out records.",
    )
    tolerance: float = Field(
        0.02,
        ge=0,
        le=1,
        description="Largest accepted loss of recall@10 in one language, or on the outside set.",
    )
    least_queries: int = Field(50, ge=1, description="Languages with fewer queries are not compared.")
    outside: Path | None = Field(
        None, description="Manifest of other records on which a candidate must not be worse."
    )


class Schedules(BaseModel, frozen=True, extra="forbid"):
    """Define the schedules: a cron in UTC, or None for off."""

    ingest: str | None = Field(
        "0 * * * *", description="When every ingested source is read again: cron in UTC, or off."
    )
    evaluate: str | None = Field(
        "30 2 * * *", description="When the active model is evaluated on held-out records."
    )
    reconcile: str | None = Field(
        "30 3 * * *", description="When Postgres and Qdrant are compared; nothing is repaired."
    )
    finetune: str | None = Field(
        None, description="When a candidate is trained, and used by searches if it passes the promotion gate."
    )
    backup: str | None = Field(None, description="When a backup is written to SIGHTLINE_BACKUP_URL.")
    prove: str | None = Field(
        None, description="When the latest backup is restored into temporary stores and compared."
    )
    purge: str | None = Field(
        "30 4 * * *", description="When unreferenced images and retired collections are removed."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _check(cls, value: Any) -> Any:
        return checked_cron(value) if isinstance(value, str) else value


class Console(BaseModel, frozen=True, extra="forbid"):
    """Define the address and the access rules of the console."""

    host: str = Field("127.0.0.1", description="Address of the console, the API and the metrics.")
    port: int = Field(8080, ge=1, le=65535, description="Port of the console, the API and the metrics.")
    password: SecretStr | None = Field(
        None,
        min_length=8,
        description="Console password, eight characters or more. Unset on loopback: generated in "
        "console.password; other addresses need one.",
    )
    user_header: str | None = Field(
        None, description="Header in which a proxy names the signed-in user, such as X-Forwarded-User."
    )
    proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        ("127.0.0.1",),
        description="Addresses of trusted proxies; the user header is ignored from all others.",
    )

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @field_validator("proxies", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return split_list(value) if isinstance(value, str) else value


class Api(BaseModel, frozen=True, extra="forbid"):
    """Define the limits of API requests and the retention of their receipts."""

    requests_per_minute: int = Field(
        600,
        ge=1,
        description="Rate limit of each API key, per process; a burst may use a whole minute's requests "
        "at once.",
    )
    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="Size limit of a request body.")
    max_records: int = Field(1000, ge=1, le=100_000, description="Most records in one request.")
    private_images: bool = Field(
        False, description="Whether image URLs in API requests may lead to this machine or a private network."
    )
    keep_receipts_days: float = Field(
        7,
        ge=0,
        description="Days until `purge` removes the receipts and idempotency keys of finished requests.",
    )


class Settings(BaseSettings):
    """Define all settings, read once and then frozen.

    SIGHTLINE_DATABASE_URL=postgresql://… SIGHTLINE_QDRANT__URL=http://…
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,  # a rejected URL may hold a password
    )

    home: Path = Field(
        Path(".sightline"), description="Data directory: everything that no other setting places."
    )
    database_url: SecretStr | None = Field(
        None,
        description="URL of a Postgres database, postgresql://user:password@host/database; unset: an "
        "embedded one. TLS as in libpq: ?sslmode=verify-full&sslrootcert=ca.pem",
    )
    database_timeout_s: int = Field(60, gt=0, description="Seconds that one SQL statement may take.")
    qdrant: Qdrant = Qdrant()
    retry_for_s: float = Field(
        60, ge=0, description="Seconds to retry a store that does not answer, with exponential backoff."
    )
    model: str = Field("starter", description="starter, a model folder, or the name of a model on the hub.")
    device: str = Field(
        "auto",
        description="Torch device: auto (CUDA with bfloat16 if available, else CPU), cpu, cuda, cuda:1.",
    )
    gate: PromotionGate = PromotionGate()
    langs: Annotated[tuple[str, ...], NoDecode] = Field(
        ("en",),
        description="Languages of embedded texts, such as en,de or all; texts without a tag always are.",
    )
    batch_size: int = Field(256, ge=1, le=4096, description="Records per batch; fewer images on a CPU.")
    decode_workers: int = Field(
        default_factory=lambda: min(MOST_WORKERS, os.cpu_count() or 1),
        ge=0,
        le=256,
        description="Processes that decode images. Default: number of cores, at most 16; 0: share those "
        "of searches.",
    )
    pictures_url: str | None = Field(
        None,
        description="Store of image files: a folder or an fsspec URL such as s3://bucket/images; unset: "
        "data directory.",
    )
    keep_pictures: bool = Field(True, description="Whether image files are kept, or only their URIs.")
    max_picture_bytes: int = Field(
        64 * 2**20, gt=0, description="Size limit of an image file; larger ones are rejected."
    )
    fetch_timeout_s: float = Field(30, gt=0, description="Seconds that fetching one image may take.")
    private_redirects: bool = Field(
        False, description="Whether a redirect to another host may lead to this machine or a private network."
    )
    fetch_contact: str | None = Field(
        None,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="URL or e-mail address in the User-Agent of image requests, for hosts that demand one.",
    )
    fetch_headers: dict[str, dict[str, SecretStr]] = Field(
        {},
        description="Headers of image requests by host, such as "
        '{"images.example.org": {"Authorization": "Bearer …"}}; `*` is every host.',
    )
    fetch_rate: float = Field(
        20, gt=0, description="Most image requests a second to one host; this machine has no limit."
    )
    fetch_wait_s: float = Field(
        60, ge=0, description="Seconds to wait in all where a host answers 429 or 503 with Retry-After."
    )
    links_within: Path | None = Field(
        None,
        description="Folder that links of a source below it may lead into; links to folders are then "
        "followed. Unset: links stay in the source.",
    )
    keep_retired_days: float = Field(
        7,
        ge=0,
        description="Days until `purge` removes a retired collection; until then `rollback` can restore it.",
    )
    max_reject_share: float = Field(
        0.5, ge=0, le=1, description="Largest share of rejected records of a successful run."
    )
    backup_url: str | None = Field(
        None, description="Target of scheduled backups: a folder or an fsspec URL."
    )
    schedules: Schedules = Schedules()
    secrets_dir: Path | None = Field(
        None, description="Folder of files that each hold one setting, named like its variable in lower case."
    )
    console: Console = Console()
    api: Api = Api()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 (each source knows it)
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read variables first, then the files of the secrets folder."""
        folder = os.environ.get(SECRETS_DIR)
        files = NestedSecretsSettingsSource(file_secret_settings, folder, secrets_dir_missing="error")
        return init_settings, env_settings, files

    @property
    def limits(self) -> Limits:
        headers = {
            host: {name: value.get_secret_value() for name, value in given.items()}
            for host, given in self.fetch_headers.items()
        }
        rules = HostRules(self.fetch_contact, headers, self.fetch_rate, self.fetch_wait_s)
        return Limits(
            self.max_picture_bytes,
            self.fetch_timeout_s,
            self.private_redirects,
            self.api.private_images,
            self._links_within,
            rules,
        )

    @property
    def _links_within(self) -> Path | None:
        return None if self.links_within is None else self.links_within.resolve()

    def reading(self, options: Mapping[str, Any]) -> ReadOptions:
        """Return the options of reading a source, of which some are settings."""
        return ReadOptions.of_json(options, self._links_within)

    def with_time(self) -> "Settings":
        """Return these settings with timeouts for long requests, such as a COPY."""
        slow = self.qdrant.model_copy(update={"timeout_s": max(self.qdrant.timeout_s, LONG_REQUEST_S)})
        timeout_s = max(self.database_timeout_s, LONG_REQUEST_S)
        return self.model_copy(update={"qdrant": slow, "database_timeout_s": timeout_s})

    def embedded(self) -> "Settings":
        """Return these settings with the embedded stores of the data directory."""
        own = self.qdrant.model_copy(update={"url": None, "api_key": None})
        return self.model_copy(update={"database_url": None, "qdrant": own, "pictures_url": None})

    def listening_at(self, host: str | None, port: int | None) -> "Settings":
        """Return these settings with another console address."""
        given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
        return self.model_copy(update={"console": self.console.model_copy(update=given)})

    @field_validator("database_url")
    @classmethod
    def _check_database(cls, value: SecretStr | None) -> SecretStr | None:
        return value and SecretStr(postgres_url(value.get_secret_value()))

    @field_validator("langs", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return split_list(value) if isinstance(value, str) else value


def split_list(value: str) -> tuple[str, ...]:
    """Split a list such as `en,de`.

    >>> split_list("en, pt_BR")
    ('en', 'pt_BR')
    """
    return tuple(one for part in value.split(",") if (one := part.strip()))


def load_settings() -> Settings:
    """Read the settings from the environment.

    An existing data directory is restricted to its owner.

    Raises:
        BadSettings: a value is invalid, or a variable looks like a setting and is none.
        UntrustedDirectory: another user made the data directory, or can write to it.
    """
    _reject_unknown_names(sorted(os.environ))
    settings = _read()
    restrict(settings.home)
    if settings.secrets_dir is not None:
        _reject_unknown_names(sorted(file.name.upper() for file in settings.secrets_dir.iterdir()))
    for name in ("backup", "prove"):
        if getattr(settings.schedules, name) is not None and settings.backup_url is None:
            raise BadSettings(
                f"{PREFIX}SCHEDULES__{name.upper()} is set, but not where backups are: set "
                f"{PREFIX}BACKUP_URL to a folder or an fsspec URL"
            )
    return settings


def _read() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + "__".join(str(part) for part in first["loc"]).upper()
        why = first["msg"].removeprefix("Value error, ")  # pydantic's words before ours
        raise BadSettings(f"{name}: {why}; see flows/config/SETTINGS.md") from error
    except SettingsError as error:
        raise BadSettings(f"{SECRETS_DIR}: {error}") from error


def wants_traces() -> bool:
    """Return whether OpenTelemetry's variables name a collector of spans."""
    return any(os.environ.get(name) for name in TRACES_TO)


def _reject_unknown_names(names: Sequence[str]) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for name in names:
        if not name.startswith(PREFIX) or name.startswith(PREFIX + "TEST_"):
            continue
        if name.split("__")[0] not in known:
            near = get_close_matches(name.split("__")[0], known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; see flows/config/SETTINGS.md"
            raise BadSettings(f"{name} is no setting of Sightline{hint}")
