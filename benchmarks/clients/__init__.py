"""per_agent and its peers under one face: `made(NAME, place)` is a `Client` of a running library, ready to be called.

Each is set up as its documentation says, and records the same thing: which user of which customer did what. Only
where events are counted at the other end (`roomy`) a queue is made larger than its default, so that nothing is
dropped. An import that fails is left to the caller.
"""

import logging

from benchmarks.clients import agents, queues, services
from benchmarks.clients.client import Client, Place

_MAKERS = agents.MAKERS | services.MAKERS | queues.MAKERS


def made(name: str, place: Place) -> Client:
    logging.disable()  # a line for each event that is dropped would be what is measured
    return _MAKERS[name](place)
