"""Translates text with a provider's model, paid from the workspace's credits."""
