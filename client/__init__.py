"""A hospital: its agent, its data, its ledger."""
