"""The stores that need no server: Postgres and Qdrant's own engine, both kept in the home folder."""
