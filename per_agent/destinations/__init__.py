"""Where events go: the `Destination` protocol, its outcomes, and one module for each upstream."""

from per_agent.destinations.outcome import Delivered, Halt, Outcome, Parked, Refused, Retry
from per_agent.destinations.protocol import Destination

__all__ = ["Delivered", "Destination", "Halt", "Outcome", "Parked", "Refused", "Retry"]
