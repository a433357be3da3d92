"""Kills, load, soak and bad bytes: whether a deployment survives them."""
