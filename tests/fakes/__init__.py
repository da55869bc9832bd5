"""Providers as HTTP servers on loopback that speak the true wire formats, so that the real SDKs run against them.

In a test: `async with FakeOpenAI() as fake: ...`. As a process: `python -m tests.fakes.openai --port 9001`.
"""
