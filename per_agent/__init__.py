"""per_agent: a buffered background agent for usage events that people are billed by.

::

    from per_agent import Agent
    with Agent() as agent:                                     # no account needed: the embedded ledger counts
        agent.add_activity("acme", "u-17", "active-users")     # returns at once

The map of the house, from the doors down; imports only ever run down this list:

================  ===================================================================================
`cli`             the command `per-agent`
`sidecar`         `per-agent run`: takes events over HTTP from other processes; nothing here imports it
`agent`           `Agent`: builds the parts, starts and stops them in order, survives forks and exits
`intake`          from the caller's thread into a bounded buffer
`courier`         from the spool to the destinations, with pauses, retries and parking
`passthrough`     reports and meter management, straight to the upstream
`spool`           the durable queue of one process: lanes of blocks, dead letters, the books
`journal`         the mapped file that an event is in before `add_*` returns, and its recovery
`destinations`    Per, Payment Kit, the embedded ledger, a sidecar, the in-memory double
`ledger`          the embedded usage ledger (SQLite)
`backoff`         the arithmetic of waiting
`settings`        TOML, environment and credentials
`event`, `books`  the words that everyone uses
`errors`, `log`   the error tree; the agent's own log lines; `version`, as it was installed
`files`           opened as themselves or not at all: no planted link, pipe or device is taken for ours
`histogram`       how often values fell where, for latencies
`failpoint`       named steps at which a test has the process killed
`month`           calendar months in UTC, which upstreams bill by
`courtesy`        the caller's threads get the processor between two steps of the agent's
`late`            heavy modules are loaded when first needed, and not while the process forks
================  ===================================================================================

Two ranked goals settle every question in it: an accepted event is never lost or doubled; the caller is
never held up.
"""

from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from per_agent.agent import Agent
from per_agent.books import Books
from per_agent.destinations.local import Ledger
from per_agent.destinations.memory import MemoryDestination
from per_agent.destinations.payment_kit import PaymentKit
from per_agent.destinations.per import Per
from per_agent.destinations.sidecar import Sidecar
from per_agent.errors import (
    AgentClosed,
    BufferFull,
    ConfigError,
    InvalidEvent,
    PerAgentError,
    RateLimited,
    Refused,
    SpoolCorrupt,
    SpoolError,
    SpoolFull,
    Unauthorized,
    Unavailable,
    UpstreamError,
)
from per_agent.event import Activity, MeterEvent, Receipt
from per_agent.settings import DeliverySettings, IntakeSettings, SpoolSettings

__all__ = [
    "Activity",
    "Agent",
    "AgentClosed",
    "Books",
    "BufferFull",
    "ConfigError",
    "DeliverySettings",
    "IntakeSettings",
    "InvalidEvent",
    "Ledger",
    "MemoryDestination",
    "MeterEvent",
    "PaymentKit",
    "Per",
    "PerAgentError",
    "RateLimited",
    "Receipt",
    "Refused",
    "Sidecar",
    "SpoolCorrupt",
    "SpoolError",
    "SpoolFull",
    "SpoolSettings",
    "Unauthorized",
    "Unavailable",
    "UpstreamError",
    "add_activity",
    "add_meter_event",
    "configure",
    "get_report",
]

# The one. No lock, which a signal handler's first event, or one in a forked child, would wait for without end: a
# dict, since its `setdefault` is a single operation of the interpreter.
_chosen: Final[dict[str, Agent]] = {}


def configure(agent: Agent | None = None, **arguments: Any) -> Agent:
    """Set the default agent: *agent*, or a new one made with `Agent`'s *arguments*. Closes the one before."""
    if agent is not None and arguments:
        raise ConfigError("configure takes an agent, or the arguments to make one, not both")
    chosen = agent or Agent(**arguments)
    # Of two calls at the same moment one may leave the other's agent open: that ends with the program, as any does.
    before, _chosen["default"] = _chosen.get("default"), chosen
    if before is not None and before is not chosen:
        before.close()
    return chosen


def _agent() -> Agent:
    agent = _chosen.get("default")
    if agent is None:
        made = Agent.from_config()
        agent = _chosen.setdefault("default", made)
        if agent is not made:
            made.close()  # another thread, or a signal handler in this one, was faster: nothing of it was started
    return agent


def add_activity(
    billing_id: str, user_id: str, activity_type_id: str, at: datetime | float | str | None = None
) -> Receipt:
    """`Agent.add_activity` of the default agent, which the environment describes where `configure` did not."""
    return _agent().add_activity(billing_id, user_id, activity_type_id, at)


def add_meter_event(
    event_name: str, *, customer_id: str, value: int | Decimal | str, **fields: Any
) -> Receipt:
    """`Agent.add_meter_event` of the default agent."""
    return _agent().add_meter_event(event_name, customer_id=customer_id, value=value, **fields)


def get_report(start: datetime | str | None = None, end: datetime | str | None = None) -> Any:
    """`Agent.get_report` of the default agent."""
    return _agent().get_report(start, end)
