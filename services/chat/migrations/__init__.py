"""The history of the schema `chat`."""
