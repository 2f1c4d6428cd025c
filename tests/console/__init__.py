"""Tests of the console's pages in a real browser, over a home filled by real runs."""
