"""No framework: the model is asked until it calls no more tools."""

from services.agent.domain import Completed
from services.agent.frameworks import MAX_ROUNDS
from services.agent.runs import Run
from services.common.providers.errors import ProviderBadResponse


class Plain:
    """A loop."""

    async def answer(self, run: Run) -> Completed:
        """See Framework."""
        messages = run.turn.conversation
        for _ in range(MAX_ROUNDS):
            reply = await run.ask(messages)
            if not reply.message.tool_calls:
                return reply.answer
            messages += await run.use_tools(reply.message)
        raise ProviderBadResponse("The model called tools without end.")
