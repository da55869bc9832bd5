"""Sessions, messages, shares and tasks: the orchestrator of a turn."""
