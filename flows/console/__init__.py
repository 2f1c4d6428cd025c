"""Serve the web console: a module per page, composed in `app`."""
