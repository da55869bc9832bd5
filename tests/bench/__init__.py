"""Measurements; nothing here is a test, no figure is asserted."""
