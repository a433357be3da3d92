"""The models a run description can name."""
