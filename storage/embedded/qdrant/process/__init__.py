"""Start, find and stop the process that owns the embedded index."""
