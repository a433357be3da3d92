"""The consortium's server: runs rounds, sees only sums."""
