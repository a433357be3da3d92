"""Signed hash chains: what each party of a run writes down, and how the chains are compared."""
