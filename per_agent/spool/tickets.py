"""Tells those who hold receipts what became of their events, for as long as anybody holds one."""

from collections.abc import Sequence
from weakref import WeakValueDictionary

from per_agent.event import Receipt, Ticket
from per_agent.spool.block import Block, mask_at
from per_agent.spool.records import Settlement


class Tickets:
    """The tickets of the blocks that this process stored, found by sequence number. For the spooler's thread."""

    def __init__(self) -> None:
        self._held: WeakValueDictionary[int, Ticket] = WeakValueDictionary()

    def stored(self, blocks: Sequence[Block], receipts: Sequence[Receipt]) -> None:
        """The events of *receipts* were committed as *blocks*, one for each lane."""
        ticket = Ticket(blocks[0].events, [block.lane for block in blocks])
        self._held[blocks[0].id.seq] = ticket
        for at, receipt in enumerate(receipts):
            receipt._at = at  # noqa: SLF001  (the spool's side of a receipt)
            receipt._ticket = ticket  # noqa: SLF001  (as above)

    def settled(self, block: Block, what: Settlement) -> None:
        """*what* was committed of *block*."""
        ticket = self._held.get(block.id.seq)
        if ticket is None:
            return
        places: dict[bytes, list[int]] = {}
        if block.id.part:
            # Events that were parked lie in another block by now, at other places than in the ticket; an event
            # that was recorded twice, to the byte, has several places there.
            for at, event in enumerate(ticket.events):
                places.setdefault(event, []).append(at)
        taken: Sequence[int] = what.delivered
        if places:
            taken = [place for at in taken for place in places.get(block.events[at], (at,))]
        ticket.delivered(block.lane, mask_at(taken))
        for at, letter in what.dead:
            for place in places.get(block.events[at], (at,)):
                ticket.refused(block.lane, place, letter.words)
