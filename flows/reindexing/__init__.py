"""Change the model of searches: fill a second collection, verify it, switch."""
