"""Identifiers that were accepted lately, so that a request that is sent twice is accepted once.

Context: a client whose connection broke cannot know whether its events were taken, and sends them again under
the same identifiers. Whoever counts them tells duplicates by the identifier, so a second copy would do no harm;
but it would lie in the spool and in the books beside the first. Choice: a bounded memory, in this process
only. Given up: a repeat after a restart, or after very many other events, is accepted again, and is told by
its identifier where it is counted.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final

from per_agent.event import Event, Receipt

_CAPACITY: Final = 100_000
Key = tuple[type[Event], str]


class Recent:
    """The last events that came with identifiers of their own. Belongs to the event loop's thread."""

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._capacity = capacity
        self._receipts: dict[Key, Receipt | None] = {}  # in the order of acceptance; None once stored
        self._not_stored: deque[tuple[Key, Receipt]] = deque()

    def __contains__(self, event: Event) -> bool:
        """Whether an event of this kind was accepted under this identifier."""
        return (type(event), event.id) in self._receipts

    def receipt(self, event: Event) -> Receipt | None:
        """The receipt of the event that was accepted under this identifier; None when it is stored already."""
        return self._receipts[type(event), event.id]

    def forget(self, keys: Iterable[Key]) -> None:
        """These are dead, and somebody was told: from now on they can be recorded again under their identifiers.

        Else a letter that is exported, healed, recorded again and purged would be lost.
        """
        for key in keys:
            self._receipts.pop(key, None)

    def add(self, event: Event, receipt: Receipt) -> None:
        """Remember *event*, which was just accepted."""
        key = (type(event), event.id)
        self._receipts[key] = receipt
        self._not_stored.append((key, receipt))
        # A receipt holds on to its whole block: let go of it as soon as there is nothing left to wait for.
        while self._not_stored and self._not_stored[0][1].is_stored:
            stored, _ = self._not_stored.popleft()
            if stored in self._receipts:
                self._receipts[stored] = None
        while len(self._receipts) > self._capacity:
            del self._receipts[next(iter(self._receipts))]
