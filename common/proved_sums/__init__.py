"""Proved sums: a linear, hiding commitment beside each masked vector, so that a server cannot choose the sum."""
