"""What both roles share of Flower: the app bundle and the waits it hard-codes."""
