"""The hospital's contacts with Flower: its SuperNode, and the tasks that the agent claims from it."""
