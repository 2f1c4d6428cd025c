"""The console: pages to watch an index and to act on it. Each page is a module; `app` puts them together."""
