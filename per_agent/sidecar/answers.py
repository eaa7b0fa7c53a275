"""What the hot paths share: an event handed over, a wait for its commit, and the answer's bytes."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from per_agent.errors import AgentClosed, BufferFull, SpoolFull
from per_agent.event import Event, Receipt
from per_agent.sidecar.answer import Answer
from per_agent.sidecar.problems import Problem
from per_agent.sidecar.service import Service

Taken = tuple[Answer, Sequence[Receipt]]
"""The answer to a request whose events were accepted, and what is to be on the disk before it is given."""

FULL: Final = (BufferFull, SpoolFull)
NOTHING: Final[Sequence[Receipt]] = ()

as_json = msgspec.json.Encoder(decimal_format="string").encode
_RETRY_AFTER: Final[dict[type[Exception], int]] = {
    BufferFull: 1,
    SpoolFull: 10,
}  # seconds: the buffer is emptied at once, a full spool is not


def taken(service: Service, event: Event) -> Receipt:
    """The receipt of *event*. Raises `Problem` 503 where there is no room, or the sidecar is stopping."""
    try:
        return service.agent.add_event(event)
    except (*FULL, AgentClosed) as error:
        raise no_room(error) from None


def no_room(error: Exception, **extra: Any) -> Problem:
    """503 with the time after which to try again: the event was not accepted."""
    after = _RETRY_AFTER.get(type(error), 1)
    words = (
        "the sidecar is stopping: the event was not accepted"
        if isinstance(error, AgentClosed)
        else str(error)
    )
    return Problem(503, words, headers={"retry-after": str(after)}, extra=extra)


def wants_stored(wait: str | None, service: Service) -> bool:
    """Whether the answer is to come after the commit: by the parameter `wait`, else by the settings.

    Raises `Problem` 400 for other words.
    """
    if wait not in (None, "accepted", "stored"):
        raise Problem(400, "a parameter is wrong", errors={"wait": f'must be "stored", not {wait[:40]!r}'})
    return (wait or service.settings.sidecar.answer_when) == "stored"


async def until_stored(service: Service, receipts: Sequence[Receipt], **extra: Any) -> None:
    """Return once all *receipts* are stored; all who wait share one commit.

    Raises `Problem` 504, with *extra*, when `stored_timeout` runs out: the events are accepted all the same,
    and stored when the disk answers.
    """
    try:
        async with asyncio.timeout(service.settings.sidecar.stored_timeout):
            for receipt in reversed(receipts):  # the last comes to the disk last: mostly one wait is all
                if not await receipt:
                    break
            else:
                return
    except TimeoutError:
        pass
    raise Problem(504, "accepted, but not on the disk yet; it is kept and goes on by itself", extra=extra)
