"""`Service`: what all handlers of the sidecar share."""

import asyncio
import time
from typing import Final

from per_agent.agent import Agent
from per_agent.event import Identifiers
from per_agent.settings import Settings
from per_agent.sidecar.access import Access
from per_agent.sidecar.recent import Recent
from per_agent.sidecar.request_times import RequestTimes

_READERS: Final = 2


class Service:
    """One running sidecar. Belongs to the event loop's thread.

    Attributes:
        agent: takes the events in; threads of its own deliver them.
        settings: those in force; a reload puts others here, so they are read at use and never copied.
        access: who may talk to it.
        recent: events that came lately with identifiers of their own.
        new_id: makes identifiers for those that come without.
        times: how long requests took.
        started_at: when it was started, in epoch seconds.
        reading: held by those who read a whole data folder, few at once: they are threads, which take the
            interpreter from the event loop.
        unpacking: held by the one who makes events of a long body, in a thread for the same reason.
        draining: it was told to stop: what comes is answered, and connections are closed after it.
        listeners: where it listens, such as `unix:/run/per-agent/agent.sock` or `http://127.0.0.1:4737`.
    """

    def __init__(self, agent: Agent, settings: Settings, access: Access) -> None:
        self.agent = agent
        self.settings = settings
        self.access = access
        self.recent = Recent()
        self.new_id = Identifiers().new
        self.times = RequestTimes()
        self.started_at = time.time()
        self.reading = asyncio.Semaphore(_READERS)
        self.unpacking = asyncio.Lock()
        self.draining = False
        self.listeners: tuple[str, ...] = ()
