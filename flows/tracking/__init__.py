"""Record runs, report progress and errors, and retry what a store did not answer."""
