"""What the consortium's organiser runs: the server, its authority, its members and the plan of its privacy."""
