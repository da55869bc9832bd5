"""The history of the schema `billing`."""
