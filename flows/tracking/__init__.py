"""Record runs, report progress and errors, and retry unanswered requests."""
