"""The composition root: `Agent`, the engine of its running parts, and what forks and exits do to it."""

from per_agent.agent.agent import Agent

__all__ = ["Agent"]
