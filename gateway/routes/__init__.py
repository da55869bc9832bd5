"""One file for each resource, its shapes beside its routes."""
