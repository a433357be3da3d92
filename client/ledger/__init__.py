"""A hospital's privacy ledger: what each run has spent of its budgets, on its own disk, as a hash chain."""
