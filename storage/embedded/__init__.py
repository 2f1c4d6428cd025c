"""The stores that need no server: Postgres and Qdrant's own engine, both kept in the home folder."""

from storage.embedded.account import PostgresUnavailable
from storage.embedded.data_folder import OtherPostgresVersion
from storage.embedded.postgres import postgres_url, stop_postgres
from storage.embedded.qdrant import IndexBusy, local_qdrant

__all__ = [
    "IndexBusy",
    "OtherPostgresVersion",
    "PostgresUnavailable",
    "local_qdrant",
    "postgres_url",
    "stop_postgres",
]
