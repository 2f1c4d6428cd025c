"""Each fault of a store is in one table: retried or not, with the remedy."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import psycopg
import pytest
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from flows.tracking.errors import explain
from flows.tracking.retry_policy import is_transient, persist
from storage.fault_evidence import demanded_wait_s
from storage.faults import FAULTS, find_fault


@dataclass(frozen=True)
class Case:
    error: Exception
    passes: bool
    says: str


def answered(status: int, text: str = "", *, raw: bytes | None = None, **headers: str) -> UnexpectedResponse:
    body = httpx.Response(status, json={"status": {"error": text}}).content if raw is None else raw
    return UnexpectedResponse(status, "Reason", body, httpx.Headers(headers))


def unanswered(error: Exception, cause: Exception | None = None) -> ResponseHandlingException:
    error.__cause__ = cause
    return ResponseHandlingException(error)


def tls(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


def sql(error: psycopg.Error, kind: type[DBAPIError] = OperationalError) -> DBAPIError:
    return kind("select 1", {}, error)


def no_session(text: str) -> DBAPIError:
    return sql(psycopg.OperationalError(f'connection failed: connection to server at "h" failed: {text}'))


def of_objects(name: str, code: str | None = None, module: str = "botocore.exceptions") -> Exception:
    """The error of an optional library, by its name alone."""
    base = {"EndpointConnectionError": "ConnectionError", "ReadTimeoutError": "HTTPClientError"}.get(name)
    kinds: tuple[type, ...] = (type(base, (Exception,), {"__module__": module}),) if base else (Exception,)
    error = type(name, kinds, {"__module__": module})(f"{name} {code}")
    error.response = {"Error": {"Code": code}}  # type: ignore[attr-defined]
    return error  # type: ignore[no-any-return]


def translated(kind: type[OSError], cause: Exception) -> OSError:
    """As fsspec raises it."""
    error = kind(5, str(cause))
    error.__cause__ = cause
    return error


CASES = {
    "qdrant refused": Case(unanswered(httpx.ConnectError("Connection refused")), True, "QDRANT__URL running"),
    "qdrant reset": Case(unanswered(httpx.ReadError("reset by peer")), True, "QDRANT__URL running"),
    "qdrant silent": Case(unanswered(httpx.ReadTimeout("timed out")), True, "QDRANT__URL running"),
    "qdrant cut": Case(
        unanswered(httpx.RemoteProtocolError("Server disconnected without sending a response.")),
        True,
        "does not answer",
    ),
    "qdrant certificate": Case(
        unanswered(httpx.ConnectError("x"), tls("CERTIFICATE_VERIFY_FAILED")),
        False,
        "SIGHTLINE_QDRANT__CA_FILE",
    ),
    "qdrant https to http": Case(
        unanswered(httpx.ConnectError("x"), tls("WRONG_VERSION_NUMBER")), False, "write http://"
    ),
    "qdrant client certificate": Case(
        unanswered(httpx.ReadError("x"), tls("TLSV13_ALERT_CERTIFICATE_REQUIRED")),
        False,
        "CLIENT_CERTIFICATE",
    ),
    "qdrant http to https": Case(
        unanswered(httpx.RemoteProtocolError("illegal request line")), False, "write https://"
    ),
    "qdrant http to https behind a proxy": Case(
        answered(400, raw=b"<html>The plain HTTP request was sent to HTTPS port"), False, "write https://"
    ),
    "qdrant is another service": Case(
        unanswered(type("ValidationError", (ValueError,), {})("3 errors")), False, "supported version"
    ),
    "qdrant rate": Case(ResourceExhaustedResponse("Write rate limit exceeded", 3), True, "write_rate_limit"),
    "qdrant rate, a date": Case(QdrantException("Retry-After header value is not"), True, "write_rate_limit"),
    "qdrant rate, no time": Case(answered(429, "Rate limiting exceeded"), True, "write_rate_limit"),
    "qdrant bad gateway": Case(answered(502, raw=b"<html>"), True, "does not answer"),
    "qdrant unavailable": Case(answered(503, raw=b""), True, "does not answer"),
    "qdrant gateway timeout": Case(answered(504, raw=b""), True, "does not answer"),
    "qdrant timeout": Case(answered(408, "Timeout error"), True, "TIMEOUT_S"),
    "qdrant node": Case(
        answered(500, "Service internal error: 1 of 1 read operations failed: status: Unavailable"),
        True,
        "all nodes of its cluster",
    ),
    "qdrant disk": Case(
        answered(500, "Service internal error: No space left on device"), False, "disk space"
    ),
    "qdrant disk, the log": Case(
        answered(500, "WAL buffer size exceeds available disk space"), False, "disk space"
    ),
    "qdrant storage": Case(answered(507, "Insufficient storage"), False, "disk space"),
    "qdrant fault": Case(answered(500, "Service internal error: panicked"), False, "log of the server"),
    "qdrant strict": Case(
        answered(400, "Bad request: Limit exceeded 1000 > 100 for 'limit'. Help: Reduce the limit."),
        False,
        "strict mode",
    ),
    "qdrant strict, before 1.15": Case(
        answered(403, "Forbidden: Index required but not found for x. Help: Create an index."),
        False,
        "FILTER_FIELDS",
    ),
    "qdrant key": Case(answered(401, raw=b"Invalid API key or JWT"), False, "SIGHTLINE_QDRANT__API_KEY"),
    "qdrant read-only key": Case(
        answered(403, "Forbidden: Global manage access is required"), False, "may write"
    ),
    "qdrant other request": Case(answered(404, "Not found"), False, "version"),
    "postgres disk": Case(sql(psycopg.errors.DiskFull("x")), False, "disk space"),
    "postgres too many": Case(sql(psycopg.errors.TooManyConnections("x")), True, "max_connections"),
    "postgres password": Case(sql(psycopg.errors.InvalidPassword("x")), False, "rejects the user"),
    "postgres database": Case(sql(psycopg.errors.InvalidCatalogName("x")), False, "no such database"),
    "postgres read-only": Case(
        sql(psycopg.errors.ReadOnlySqlTransaction("x"), DBAPIError), False, "to the primary"
    ),
    "postgres privilege": Case(sql(psycopg.errors.InsufficientPrivilege("x"), DBAPIError), False, "grant it"),
    "postgres shutdown": Case(sql(psycopg.errors.AdminShutdown("x")), True, "DATABASE_URL running"),
    "postgres slow": Case(sql(psycopg.errors.QueryCanceled("x")), True, "does not answer"),
    "postgres refused": Case(no_session("Connection refused"), True, "DATABASE_URL running"),
    "postgres starts": Case(no_session("FATAL:  the database system is starting up"), True, "starting up"),
    "postgres full": Case(no_session("FATAL:  sorry, too many clients already"), True, "max_connections"),
    "pgbouncer full": Case(no_session("FATAL: no more connections allowed"), True, "max_connections"),
    "postgres certificate": Case(no_session("SSL error: certificate verify failed"), False, "sslrootcert"),
    "postgres without tls": Case(
        no_session("server does not support SSL, but SSL was required"), False, "sslmode"
    ),
    "postgres login": Case(
        no_session('FATAL:  password authentication failed for user "me"'), False, "user or the password"
    ),
    "pgbouncer login": Case(no_session("FATAL: SASL authentication failed"), False, "user or the password"),
    "postgres role": Case(no_session('FATAL:  role "me" does not exist'), False, "user or the password"),
    "postgres no database": Case(
        no_session('FATAL:  database "shop" does not exist'), False, "no such database"
    ),
    "pgbouncer no database": Case(no_session("FATAL: no such database: shop"), False, "no such database"),
    "postgres connect privilege": Case(
        no_session('FATAL:  permission denied for database "shop"'), False, "grant it"
    ),
    "postgres parameter": Case(
        no_session('FATAL:  unrecognized configuration parameter "x"'), False, "start-up parameter"
    ),
    "pgbouncer parameter": Case(
        no_session("FATAL: unsupported startup parameter: x"), False, "start-up parameter"
    ),
    "postgres option": Case(
        sql(psycopg.ProgrammingError('invalid connection option "schema"'), ProgrammingError),
        False,
        "remove it from SIGHTLINE_DATABASE_URL",
    ),
    "s3 away": Case(of_objects("EndpointConnectionError"), True, "SIGHTLINE_PICTURES_URL"),
    "s3 silent": Case(of_objects("ReadTimeoutError"), True, "SIGHTLINE_BACKUP_URL"),
    "s3 certificate": Case(of_objects("SSLError"), False, "AWS_CA_BUNDLE"),
    "s3 rate": Case(translated(OSError, of_objects("ClientError", "SlowDown")), True, "fewer commands"),
    "s3 fault": Case(translated(OSError, of_objects("ClientError", "InternalError")), True, "unavailable"),
    "s3 credentials": Case(of_objects("NoCredentialsError"), False, "AWS_ACCESS_KEY_ID"),
    "s3 forbidden": Case(
        translated(PermissionError, of_objects("ClientError", "AccessDenied")), False, "read and write"
    ),
    "s3 head of a forbidden object": Case(
        translated(PermissionError, of_objects("ClientError", "403")), False, "read and write"
    ),
    "s3 bucket": Case(
        translated(FileNotFoundError, of_objects("ClientError", "NoSuchBucket")), False, "no such bucket"
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_fault_is_retried_or_not_and_its_remedy_is_named_in_one_line(case: Case):
    said = explain(case.error)

    assert is_transient(case.error) is case.passes
    assert case.says in said
    assert "\n" not in said
    assert "--debug" not in said


def test_each_row_of_the_table_has_a_case():
    tried = {find_fault(case.error) for case in CASES.values()}

    assert set(FAULTS) == tried


@pytest.mark.parametrize(
    ("error", "wait_s"),
    [
        (ResourceExhaustedResponse("", 7), 7),
        (answered(503, raw=b"", **{"Retry-After": "5"}), 5),
        (answered(503, raw=b"", **{"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}), None),
        (answered(502, raw=b""), None),
        (ValueError("a bug"), None),
    ],
)
def test_the_time_that_a_server_demands_is_read_from_its_answer(error: Exception, wait_s: float | None):
    assert demanded_wait_s(error) == wait_s


@pytest.mark.parametrize("error", [ValueError("x"), FileNotFoundError(2, "No such file", "a.png")])
def test_an_error_of_no_store_is_in_no_row(error: Exception):
    assert find_fault(error) is None
    assert not is_transient(error)


class Clock:
    """Passes time only while something sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("tenacity.time", clock)
    monkeypatch.setattr("tenacity.nap.time", clock)
    return clock


def rejected(error: Exception) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("demanded_s", "for_s", "pauses"),
    [(10, 60, 5), (60, 60, 2), (200, 60, 2), (301, 600, 0), (60, 0, 0)],
)
def test_the_time_that_a_server_demands_is_waited(clock: Clock, demanded_s: int, for_s: float, pauses: int):
    with pytest.raises(ResourceExhaustedResponse):
        persist(rejected(ResourceExhaustedResponse("", demanded_s)), for_s=for_s)

    assert clock.slept == pytest.approx([demanded_s] * pauses, abs=0.5)


def test_a_fault_that_passes_is_retried_for_the_retry_time(clock: Clock):
    with pytest.raises(UnexpectedResponse):
        persist(rejected(answered(502)), for_s=60)

    assert 30 < sum(clock.slept) <= 60


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.passes])
def test_a_fault_that_stays_is_not_retried(clock: Clock, name: str):
    with pytest.raises(type(CASES[name].error)):
        persist(rejected(CASES[name].error), for_s=60)

    assert clock.slept == []
