"""Read and write the Postgres tables. The caller owns the transaction."""
