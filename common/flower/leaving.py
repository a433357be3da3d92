"""How a hospital's relay says that it was stopped where it is, so that nobody takes its silence for a failure."""

LEAVES = "confide-leaves"
"""The name of what goes with Flower's call that deactivates a node. A relay that loses its agent, or that is ended
because something failed, deactivates its node without it; one that is killed does not make the call."""
