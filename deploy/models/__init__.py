"""What people run before they name a model in a run: its hash, a trial of it, and its first weights."""
