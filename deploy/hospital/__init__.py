"""What a hospital runs: check its data, join, and see its status, report and ledger."""
