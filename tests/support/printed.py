"""What a command printed, without the ends of lines that its 80 columns gave it."""


def unwrapped(text: str) -> str:
    """Return the words of a text with one space between them."""
    return " ".join(text.split())
