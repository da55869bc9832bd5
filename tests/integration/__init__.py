"""Tests of the whole system through REST, on real processes."""
