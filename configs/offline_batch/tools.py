"""The tool of the batch's agent: a plain function."""


def count_words(text: str) -> int:
    """Count the words of a text."""
    return len(text.split())
