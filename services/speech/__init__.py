"""Audio in, text out, paid by the second."""
