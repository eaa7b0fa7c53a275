"""`Batch`: the events of one request of our own form, and what became of each."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, NamedTuple

from per_agent.errors import AgentClosed, InvalidEvent
from per_agent.event import Event, Receipt
from per_agent.sidecar.answers import FULL
from per_agent.sidecar.problems import Problem
from per_agent.sidecar.service import Service

_SLICE: Final = 0.002  # seconds between two looks at other requests
_LOOK: Final = 32  # records between two looks at the clock

Checked = tuple[Event, str | None] | dict[str, str]
"""An event with the identifier that it brought, or what is wrong with it."""


class Part(NamedTuple):
    """Some records of a request, in their order.

    Attributes:
        records: each as a `Checked`; or, where *plain*, records that were read straight.
        lines: the numbers of the lines on which they stand, if they are on lines of their own.
        count_rest: how many records follow them in the request; they are not read for it.
    """

    records: Sequence[Any]
    plain: bool = False
    lines: Sequence[int] | None = None
    count_rest: Callable[[], int] = lambda: 0


class Batch:
    """Accepts what *parts* hold; they are read when it comes to them, so that none holds up others for long.

    Attributes:
        waiting: the receipts of its events that are to be stored.
        rejected: what is wrong with the others.
    """

    def __init__(self, service: Service, parts: AsyncIterator[Part]) -> None:
        self._service = service
        self._parts = parts
        self._ids: list[str | None] = []
        self.waiting: list[Receipt] = []
        self.rejected: list[dict[str, Any]] = []
        self.accepted = 0
        self.repeats = 0  # of identifiers that were accepted before

    async def accept(self) -> None:
        """Hand the events over one by one. Raises `BufferFull`, `SpoolFull` or `AgentClosed` where it must end."""
        until = time.perf_counter() + _SLICE
        async for part in self._parts:
            start, size = len(self._ids), len(part.records)
            self._ids += [None] * size
            for first in range(0, size, _LOOK):
                try:
                    self._accept(part, range(first, min(first + _LOOK, size)), start)
                except (*FULL, AgentClosed):
                    self._ids += [None] * part.count_rest()
                    raise
                if time.perf_counter() > until:
                    await asyncio.sleep(0)
                    until = time.perf_counter() + _SLICE

    def _accept(self, part: Part, places: range, start: int) -> None:
        """Accept the records of *part* at *places*; the first of the part has the position *start* in the request."""
        service, records, agent = self._service, part.records, self._service.agent
        new_id, livemode, now = service.new_id, agent.livemode, time.time()
        for place in places:
            record = records[place]
            try:
                if part.plain:
                    named = record.id
                    event = record.event(named or new_id(now), now, livemode)
                elif isinstance(record, dict):
                    raise InvalidEvent(record)  # noqa: TRY301  (told as what `add_event` says)
                else:
                    event, named = record
                if named is None:
                    self.waiting.append(agent.add_event(event))
                    self.accepted += 1
                else:
                    self._take(event, named)
                self._ids[start + place] = event.id
            except InvalidEvent as error:
                where = {} if part.lines is None else {"line": part.lines[place]}
                self.rejected.append({"position": start + place, **where, "errors": error.problems})

    def _take(self, event: Event, named: str) -> None:
        """Accept *event*, which came with an identifier, unless it did so before."""
        recent = self._service.recent.of(type(event))
        if named not in recent:
            receipt = self._service.agent.add_event(event)
            self.accepted += 1
            self.waiting.append(receipt)
            recent.add(named, receipt)
            return
        self.repeats += 1
        earlier = recent.receipt(named)
        if earlier is not None:
            self.waiting.append(earlier)

    @property
    def taken(self) -> int:
        """How many events are in the agent's hands; those that were there before are."""
        return self.accepted + self.repeats

    def document(self) -> dict[str, Any]:
        """What became of the events, as JSON."""
        document: dict[str, Any] = {"accepted": self.taken, "ids": self._ids}
        if self.rejected:
            document["rejected"] = self.rejected
        return document

    def refusal(self, *, single: bool) -> Problem:
        """What to answer when no event was good; *single*: the request was one event, and no list."""
        if single:
            return Problem(400, "the event is not valid", errors=self.rejected[0]["errors"])
        words = "no event is valid" if self.rejected else "there is no event in the request"
        return Problem(400, words, extra=self.document())
