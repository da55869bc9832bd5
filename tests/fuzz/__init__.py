"""Random bytes in place of providers' answers."""
