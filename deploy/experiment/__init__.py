"""Experiments: many trainings with the deployed code, in one process, and what they say together."""
