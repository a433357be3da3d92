"""What a run is, as both sides see it: its terms, its rounds, its messages and the vector they carry."""
