"""Readers and checks of a hospital's own images."""
