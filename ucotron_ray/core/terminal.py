"""What is printed of data that others wrote."""


def printable(line: str) -> str:
    """A line without what moves a terminal's cursor."""
    return "".join(char if char.isprintable() else "·" for char in line)


def cut(text: str, width: int) -> str:
    """At most `width` characters, with a mark where some are missing."""
    return text if len(text) <= width else text[: width - 1] + "…"
