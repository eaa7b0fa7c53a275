"""The composition root: `Agent`, the engine of its running parts, and what forks and exits do to it."""

from per_agent.agent.agent import Agent
from per_agent.agent.build import destination_of

__all__ = ["Agent", "destination_of"]
