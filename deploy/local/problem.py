"""What the person at the keyboard can mend."""


class Problem(Exception):
    """Its text is the one sentence that they read: what is wrong and what to do."""
