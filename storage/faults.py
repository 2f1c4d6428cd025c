"""List the faults of servers: which pass, and the remedy of each.

Retries and messages both follow from this table. A row matches by the code of an error; by its text only
where the server or the driver gives no code.
"""

from dataclasses import dataclass

from storage.fault_evidence import Evidence, Store, evidence_of

QDRANT_RUNNING = "is the server of SIGHTLINE_QDRANT__URL running?"
QDRANT_KEY = "set SIGHTLINE_QDRANT__API_KEY to a key that may write"
DATABASE = "SIGHTLINE_DATABASE_URL"
POSTGRES_RUNNING = f"is the server of {DATABASE} running?"
DISK = "free or add disk space there, then run the command again"
OBJECTS = "SIGHTLINE_PICTURES_URL or SIGHTLINE_BACKUP_URL"


@dataclass(frozen=True, slots=True)
class Fault:
    """Describe one kind of failure of a store."""

    store: Store
    cause: str
    """Predicate of a sentence about the store."""

    remedy: str
    codes: tuple[str, ...]
    """HTTP status, SQLSTATE or its class, TLS reason, or class of the error; one of them must be there."""

    texts: tuple[str, ...] = ()
    """Lower case; one of them must be in the message. Only where codes do not tell faults apart."""

    passes: bool = False
    """Whether the same call may succeed soon: it is retried."""

    of_request: bool = False
    """Whether the store works, and rejects this request alone."""

    unanswered: bool = False
    """Whether the store gave no answer: an embedded store then has a remedy of its own."""


FAULTS = (
    # connections to a Qdrant server
    Fault(
        "Qdrant",
        "has a certificate that is not trusted",
        "set SIGHTLINE_QDRANT__CA_FILE to the certificate of its authority",
        ("CERTIFICATE_VERIFY_FAILED",),
    ),
    Fault(
        "Qdrant",
        "speaks http, not https",
        "write http:// in SIGHTLINE_QDRANT__URL, or enable TLS on the server",
        ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"),
    ),
    Fault(
        "Qdrant",
        "rejects the client certificate",
        "set SIGHTLINE_QDRANT__CLIENT_CERTIFICATE to one that it trusts",
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "TLSV1_ALERT_UNKNOWN_CA", "SSLV3_ALERT_BAD_CERTIFICATE"),
    ),
    Fault(
        "Qdrant",
        "does not speak http here",
        "write https:// in SIGHTLINE_QDRANT__URL if the server has TLS",
        ("RemoteProtocolError",),
        texts=("illegal request line", "illegal status line"),
    ),
    Fault(
        "Qdrant",
        "expects https",
        "write https:// in SIGHTLINE_QDRANT__URL",
        ("400",),
        texts=("plain http request was sent to https",),
    ),
    Fault(
        "Qdrant",
        "answers in an unknown form",
        "is SIGHTLINE_QDRANT__URL that of a Qdrant server of a supported version (infra/README.md)?",
        ("ValidationError", "JSONDecodeError"),
    ),
    Fault("Qdrant", "does not answer", QDRANT_RUNNING, ("no response",), passes=True, unanswered=True),
    # answers of a Qdrant server
    Fault(
        "Qdrant",
        "limits the rate of requests",
        "raise read_rate_limit or write_rate_limit of its strict mode, or run fewer commands at once",
        ("429",),
        passes=True,
    ),
    Fault(
        "Qdrant",
        "has no disk space left",
        DISK,
        ("500", "503", "507"),
        texts=(
            "no space left",
            "available disk space",
            "insufficient disk",
            "disk full",
            "insufficient storage",
        ),
    ),
    Fault(
        "Qdrant",
        "does not answer in time",
        "wait until it is less busy, or raise SIGHTLINE_QDRANT__TIMEOUT_S",
        ("408",),
        passes=True,
    ),
    Fault("Qdrant", "does not answer", QDRANT_RUNNING, ("502", "503", "504"), passes=True, unanswered=True),
    Fault(
        "Qdrant",
        "has a node that is unavailable",
        "are all nodes of its cluster running?",
        ("500",),
        texts=("unavailable", "transport error", "tcp connect error", "failed to connect"),
        passes=True,
    ),
    Fault("Qdrant", "fails inside", "see the log of the server", ("500",)),
    Fault(
        "Qdrant",
        "rejects a request in strict mode",
        "change the limit in the strict mode of the collection, or list the field in "
        "SIGHTLINE_QDRANT__FILTER_FIELDS",
        ("400", "403"),
        texts=(". help:",),
        of_request=True,
    ),
    Fault("Qdrant", "rejects the key", "set SIGHTLINE_QDRANT__API_KEY to the key of the server", ("401",)),
    Fault("Qdrant", "forbids the request with this key", QDRANT_KEY, ("403",)),
    Fault(
        "Qdrant",
        "rejects a request",
        "does its version fit (infra/README.md)?",
        ("response",),
        of_request=True,
    ),
    # Postgres, where there is an SQLSTATE
    Fault("Postgres", "has no disk space left", DISK, ("53100",)),
    Fault(
        "Postgres",
        "has no connection free",
        "raise max_connections of the server, or run fewer commands at once",
        ("53300",),
        passes=True,
    ),
    Fault("Postgres", "rejects the user or the password", f"correct them in {DATABASE}", ("28P01", "28000")),
    Fault("Postgres", "has no such database", f"create it, or correct {DATABASE}", ("3D000",)),
    Fault("Postgres", "is read-only", f"connect {DATABASE} to the primary, or end its recovery", ("25006",)),
    Fault("Postgres", "denies a privilege", f"grant it to the user of {DATABASE}", ("42501",)),
    Fault(
        "Postgres",
        "is given an unknown option",
        f"remove it from {DATABASE}",
        ("no statement",),
        texts=("invalid connection option", "invalid uri query parameter"),
    ),
    # Postgres before a session, of which the driver passes no code on
    Fault(
        "Postgres",
        "is starting up or shutting down",
        POSTGRES_RUNNING,
        ("no session",),
        texts=("the database system is", "not yet accepting connections", "query_wait_timeout"),
        passes=True,
        unanswered=True,
    ),
    Fault(
        "Postgres",
        "has no connection free",
        "raise max_connections of the server, or run fewer commands at once",
        ("no session",),
        texts=("too many", "no more connections allowed", "connection slots are reserved"),
        passes=True,
    ),
    Fault(
        "Postgres",
        "has a certificate that is not trusted",
        f"add sslrootcert=… to {DATABASE}",
        ("no session",),
        texts=("certificate verify failed", "root certificate file"),
    ),
    Fault(
        "Postgres",
        "offers no TLS",
        f"enable it on the server, or change sslmode in {DATABASE}",
        ("no session",),
        texts=("does not support ssl",),
    ),
    Fault(
        "Postgres",
        "rejects the user or the password",
        f"correct them in {DATABASE}",
        ("no session",),
        texts=(
            "password authentication failed",
            "authentication failed for user",
            "sasl authentication failed",
            "no password supplied",
            "no pg_hba.conf entry",
            'role "',
            "no such user",
            "not permitted to log in",
        ),
    ),
    Fault(
        "Postgres",
        "denies a privilege",
        f"grant it to the user of {DATABASE}",
        ("no session",),
        texts=("permission denied for database",),
    ),
    Fault(
        "Postgres",
        "has no such database",
        f"create it, or correct {DATABASE}",
        ("no session",),
        texts=("no such database", 'database "'),
    ),
    Fault(
        "Postgres",
        "rejects a start-up parameter",
        f"remove it from the options of {DATABASE}",
        ("no session",),
        texts=("startup parameter", "configuration parameter", "invalid value for parameter"),
    ),
    Fault(
        "Postgres",
        "does not answer",
        POSTGRES_RUNNING,
        ("no session", "connection lost", "operational"),
        passes=True,
        unanswered=True,
    ),
    # Object stores
    Fault(
        "the object store",
        "has a certificate that is not trusted",
        "set AWS_CA_BUNDLE to the certificate of its authority",
        ("SSLError", "CERTIFICATE_VERIFY_FAILED"),
    ),
    Fault(
        "the object store",
        "does not answer",
        f"is the endpoint of {OBJECTS} right, and running?",
        ("HTTPClientError", "ConnectionError", "ClientConnectionError", "TimeoutError"),
        passes=True,
    ),
    Fault(
        "the object store",
        "limits the rate of requests",
        "run fewer commands at once",
        ("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "429"),
        passes=True,
    ),
    Fault(
        "the object store",
        "is unavailable",
        "wait until it works again",
        ("InternalError", "ServiceUnavailable", "RequestTimeout", "500", "502", "503", "504"),
        passes=True,
    ),
    Fault(
        "the object store",
        "rejects the credentials",
        f"give those of {OBJECTS} (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) the right to read and write",
        (
            "NoCredentialsError",
            "AccessDenied",
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "ExpiredToken",
            "401",
            "403",
        ),
    ),
    Fault("the object store", "has no such bucket", f"create it, or correct {OBJECTS}", ("NoSuchBucket",)),
)


def find_fault(error: BaseException) -> Fault | None:
    """Return the row of the table that an error matches."""
    found = evidence_of(error)
    return next((row for row in FAULTS if found is not None and _matches(row, found)), None)


def _matches(row: Fault, found: Evidence) -> bool:
    text = found.text.lower()
    return (
        row.store == found.store
        and not found.codes.isdisjoint(row.codes)
        and (not row.texts or any(part in text for part in row.texts))
    )
