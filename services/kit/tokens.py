"""How many tokens a text is, before any model has counted them."""

BYTES_PER_TOKEN = 4


def estimate_tokens(size_bytes: int) -> int:
    """Tokens of a text of that many UTF-8 bytes, rounded up."""
    return -(-size_bytes // BYTES_PER_TOKEN)
