"""Asking one HTTP service: connections, their bounds, and answers as values."""

from per_agent.destinations.http.address import check_config, segment
from per_agent.destinations.http.answer import REPORT_LIMIT, SEND_LIMIT, Answer
from per_agent.destinations.http.upstream import Upstream, clip

__all__ = ["REPORT_LIMIT", "SEND_LIMIT", "Answer", "Upstream", "check_config", "clip", "segment"]
