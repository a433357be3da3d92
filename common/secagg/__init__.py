"""Secure aggregation: Bonawitz et al. 2017, figure 4, as pure functions; see README.md beside this file."""
