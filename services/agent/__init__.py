"""Runs turns: takes queued tasks from chat, calls the session's provider through its framework, reports the end."""
