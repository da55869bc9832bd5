"""Agent frameworks behind one protocol: a run goes in, the answer comes out; events and usage are the run's own.

A session may switch its framework between turns, so none keeps anything of its own: the history and the kept steps are
all there is.
"""

from collections.abc import Mapping
from typing import Protocol

from services.agent.domain import Completed
from services.agent.runs import Run

# A model that calls tools for ever is stopped after so many rounds.
MAX_ROUNDS = 25


class Framework(Protocol):
    """Answers a turn."""

    async def answer(self, run: Run) -> Completed:
        """Ask the model, use the tools it asks for, until it answers. Raises RunErrors."""
        ...


Frameworks = Mapping[str, Framework]
