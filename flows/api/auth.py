"""Authenticate API requests by key, and authorize them by scope."""

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes

from flows.api.limits import CALLER, RateLimiter
from flows.api.problems import ApiError
from flows.service.pool import Backend
from storage.postgres import api_keys
from storage.postgres.api_keys import Key

BEARER = HTTPBearer(
    scheme_name="key",
    bearerFormat="sl_…",
    auto_error=False,
    description=(
        "A key that `sightline keys create` has made. Its scopes: `read` searches and reads, `write` sends "
        "and deletes records and does not include `read`, `admin` includes both, and alone deletes whole "
        "sources."
    ),
)


class KeyAuthenticator:
    """Authenticate callers by their keys, and limit their request rates."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._rates = RateLimiter(backend.settings.api.requests_per_minute)

    def require(
        self,
        request: Request,
        wanted: SecurityScopes,
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)],
    ) -> Key:
        """Return the key of a request with the required scopes.

        Raises:
            ApiError: 401, 403 or 429.
            StoreUnavailable: Postgres is unavailable, so no key can be checked.
        """
        key = self.authenticate(None if given is None else given.credentials)
        for scope in wanted.scopes:
            require_scope(key, scope)
        request.scope[CALLER] = key.id
        return key

    def authenticate(self, given: str | None) -> Key:
        """Return the stored key, and count a request of it; see `require`."""
        if given is None:
            raise _unauthorized(
                "this needs a key: Authorization: Bearer sl_…; see: sightline keys create", ""
            )
        with self._backend.sessions() as sessions, sessions.begin() as session:
            key = api_keys.find(session, given)
        if key is None:
            raise _unauthorized("this key is unknown, revoked or expired", ', error="invalid_token"')
        wait_s = self._rates.take(key.id)
        if wait_s:
            raise ApiError(429, f"key {key.name!r} makes too many requests", retry_after_s=wait_s)
        return key


def require_scope(key: Key, scope: str) -> None:
    """Require that the key has `scope`.

    Raises:
        ApiError: 403.
    """
    if not key.may(scope):
        why = f"key {key.name!r} lacks the scope {scope!r}, which this needs"
        challenge = f'Bearer realm="sightline", error="insufficient_scope", scope="{scope}"'
        raise ApiError(403, why, headers={"WWW-Authenticate": challenge})


def _unauthorized(why: str, error: str) -> ApiError:
    return ApiError(401, why, headers={"WWW-Authenticate": f'Bearer realm="sightline"{error}'})
