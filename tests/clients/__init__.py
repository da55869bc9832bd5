"""Clients that nobody here wrote, against the whole system: `make test-clients`, `make test-browser`."""
