"""Reading the token counts that providers report."""

# More than any model reads or writes in one call; also what fits every column and message that carries a count.
MAX_TOKENS = 2**31 - 1


def count(value: object) -> int | None:
    """A token count. None for anything that can't be one: text, fractions, negative or absurd numbers."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= MAX_TOKENS else None
