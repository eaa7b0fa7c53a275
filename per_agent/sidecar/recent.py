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

from per_agent.event import Activity, Event, MeterEvent, Receipt

_CAPACITY: Final = 100_000  # of each kind
Key = tuple[type[Event], str]


class Recent:
    """The last events of both kinds that came with identifiers of their own. Belongs to the event loop's thread."""

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._kinds = {kind: _Kind(capacity) for kind in (Activity, MeterEvent)}

    def of(self, kind: type[Event]) -> "_Kind":
        """Those of one kind."""
        return self._kinds[kind]

    def forget(self, keys: Iterable[Key]) -> None:
        """These are dead, and somebody was told: from now on they can be recorded again under their identifiers.

        Else a letter that is exported, healed, recorded again and purged would be lost.
        """
        for kind, identifier in keys:
            self._kinds[kind].forget(identifier)


class _Kind:
    """It remembers at least half of *capacity*, in two generations: when the newer one is that large, the older
    one goes as a whole. To take the first out of one dictionary each time would get slower with each.
    """

    def __init__(self, capacity: int) -> None:
        self._half = capacity // 2
        self._newer: dict[str, Receipt | None] = {}  # None once stored
        self._older: dict[str, Receipt | None] = {}
        self._not_stored: deque[tuple[str, Receipt]] = deque()

    def __contains__(self, identifier: str) -> bool:
        """Whether an event was accepted under this identifier."""
        return identifier in self._newer or identifier in self._older

    def receipt(self, identifier: str) -> Receipt | None:
        """The receipt of the event that was accepted under this identifier; None when it is stored already."""
        return self._newer[identifier] if identifier in self._newer else self._older[identifier]

    def forget(self, identifier: str) -> None:
        self._newer.pop(identifier, None)
        self._older.pop(identifier, None)

    def add(self, identifier: str, receipt: Receipt) -> None:
        """Remember the event that was just accepted under *identifier*."""
        newer, waiting = self._newer, self._not_stored
        if len(newer) >= self._half:
            self._older, self._newer = newer, {}
            newer = self._newer
        newer[identifier] = receipt
        waiting.append((identifier, receipt))
        # A receipt holds on to its whole block: let go of it as soon as there is nothing left to wait for.
        while waiting and waiting[0][1].is_stored:
            stored, _ = waiting.popleft()
            if stored in newer:
                newer[stored] = None
            elif stored in self._older:
                self._older[stored] = None
