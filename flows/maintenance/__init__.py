"""Keep the stores consistent: repair, delete, purge, back up and restore."""
