"""Keep the shards of the embedded index on disk, and search them."""
