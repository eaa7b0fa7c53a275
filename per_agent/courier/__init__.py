"""The delivering side: takes blocks from the spool's lanes, sends, settles."""

from per_agent.courier.attempts import Delivery
from per_agent.courier.courier import Courier
from per_agent.courier.health import Condition, Note

__all__ = ["Condition", "Courier", "Delivery", "Note"]
