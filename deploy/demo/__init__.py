"""The demo: a whole consortium on this machine, and the dealer that gives each hospital its part of the data."""
