"""The console's pages, driven in a real browser over a home that real runs have filled."""
