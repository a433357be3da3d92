"""Where images come from, how the demo deals them, and what a hospital checks of its own."""
