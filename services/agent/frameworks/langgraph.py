"""LangGraph: a graph with a model node and a tool node, compiled once per process.

Its state holds our own messages, so none is converted; the run travels as LangGraph's runtime context.
"""

import operator
from dataclasses import dataclass
from typing import Annotated, Literal, TypedDict

from langgraph.errors import GraphRecursionError
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command

from services.agent.domain import Completed, Message
from services.agent.frameworks import MAX_ROUNDS
from services.agent.runs import Reply, Run
from services.common.providers.errors import ProviderBadResponse


class State(TypedDict, total=False):
    """What the nodes pass on. Every state but the first has a reply."""

    messages: Annotated[list[Message], operator.add]
    reply: Reply


@dataclass(frozen=True, slots=True)
class Context:
    """What every node of one run is given."""

    run: Run


async def _model(state: State, runtime: Runtime[Context]) -> Command[Literal["tools", "__end__"]]:
    """Ask the model; on to the tools if it wants any. The node routes by itself: an edge that asks costs more."""
    reply = await runtime.context.run.ask(state["messages"])
    return Command(update={"reply": reply}, goto="tools" if reply.message.tool_calls else "__end__")


async def _tools(state: State, runtime: Runtime[Context]) -> State:
    return {"messages": await runtime.context.run.use_tools(state["reply"].message)}


class LangGraph:
    """The compiled graph."""

    def __init__(self) -> None:
        graph = StateGraph(State, context_schema=Context)
        graph.add_node("model", _model, destinations=("tools", END))
        graph.add_node("tools", _tools)
        graph.add_edge(START, "model")
        graph.add_edge("tools", "model")
        self._graph = graph.compile()

    async def answer(self, run: Run) -> Completed:
        """See Framework."""
        start: State = {"messages": run.turn.conversation}
        try:
            end = await self._graph.ainvoke(start, {"recursion_limit": 2 * MAX_ROUNDS}, context=Context(run))
        except GraphRecursionError:
            raise ProviderBadResponse("The model called tools without end.") from None
        reply: Reply = end["reply"]
        return reply.answer
