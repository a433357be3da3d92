"""What only the developers of Confide run: checks, tests and the supply chain."""
