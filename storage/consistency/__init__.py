"""Compare states and plan changes; pure functions without I/O."""
