"""`PaymentKit`: meter events to ArcBlock's Payment Kit, and what its undocumented answers mean."""

from per_agent.destinations.payment_kit.destination import PaymentKit
from per_agent.destinations.payment_kit.vocabulary import is_gateway_404

__all__ = ["PaymentKit", "is_gateway_404"]
