"""Parts of console pages."""
