"""Store the API keys in Postgres; the caller commits.

A key is a random number of 256 bits and cannot be guessed from its hash. Unlike that of a password, the hash
need not be slow, and each request is checked by one look-up.
"""

import hashlib
import re
import secrets
from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, cast
from uuid import UUID, uuid4

from sqlalchemy import func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from storage.errors import Conflict, NotFound
from storage.postgres.schema import KeyRow

Scope = Literal["read", "write", "admin"]
PREFIX = "sl_"
FORM = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")
USED_EVERY = timedelta(minutes=1)


class KeyExists(Conflict):
    """Signal that a key with this name is in use."""


class NoSuchKey(NotFound):
    """Signal that no key with this name is in use."""


@dataclass(frozen=True, slots=True)
class Key:
    """Describe a key, without its secret."""

    id: UUID
    name: str
    scopes: tuple[Scope, ...]
    created: datetime
    expires: datetime | None
    used: datetime | None
    """To the minute."""

    revoked: datetime | None

    def may(self, scope: str) -> bool:
        """Whether the key has `scope`.

        `admin` includes every scope; `write` does not include `read`.
        """
        return scope in self.scopes or "admin" in self.scopes

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def create(
    session: Session, name: str, scopes: Collection[Scope], *, lasts: timedelta | None = None
) -> tuple[str, Key]:
    """Create a key; return its secret and its description.

    The secret is not stored.

    Raises:
        KeyExists: a key of this name is in use.
    """
    key = PREFIX + secrets.token_urlsafe(32)
    row = {
        "id": uuid4(),
        "name": name,
        "sha256": _sha256(key),
        "scopes": sorted(set(scopes)),
        "expires": None if lasts is None else func.now() + lasts,
    }
    made = session.scalar(insert(KeyRow).values(row).on_conflict_do_nothing().returning(KeyRow))
    if made is None:
        raise KeyExists(f"a key named {name!r} is in use; choose another name, or revoke that one")
    return key, _key(made)


def find(session: Session, key: str) -> Key | None:
    """Return a valid key and record its use; None if invalid.

    Revoked and expired keys are invalid.
    """
    if not FORM.fullmatch(key):
        return None
    valid = KeyRow.revoked.is_(None), or_(KeyRow.expires.is_(None), KeyRow.expires > func.now())
    row = session.execute(
        select(KeyRow, or_(KeyRow.used.is_(None), KeyRow.used < func.now() - USED_EVERY)).where(
            KeyRow.sha256 == _sha256(key), *valid
        )
    ).first()
    if row is None:
        return None
    found, is_stale = row
    known = _key(found)
    if is_stale:
        session.execute(update(KeyRow).where(KeyRow.id == known.id).values(used=func.now()))
    return known


def list_keys(session: Session) -> list[Key]:
    """Return all keys, those in use first, by name."""
    rows = session.scalars(select(KeyRow).order_by(KeyRow.revoked.is_not(None), KeyRow.name, KeyRow.created))
    return [_key(row) for row in rows]


def revoke(session: Session, name: str) -> None:
    """Revoke the key with this name, effective at once.

    Raises:
        NoSuchKey: none is in use.
    """
    living = KeyRow.name == name, KeyRow.revoked.is_(None)
    revoked = update(KeyRow).where(*living).values(revoked=func.now()).returning(KeyRow.id)
    if not session.scalars(revoked).all():
        raise NoSuchKey(f"no key named {name!r} is in use; see: sightline keys list")


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _key(row: KeyRow) -> Key:
    scopes = cast(tuple[Scope, ...], tuple(row.scopes))
    return Key(row.id, row.name, scopes, row.created, row.expires, row.used, row.revoked)
