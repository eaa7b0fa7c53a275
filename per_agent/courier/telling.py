"""What is kept in the spools of how a destination is doing, for those who look at them from outside."""

import os
from collections.abc import Sequence

from per_agent.courier.attempts import Attempts
from per_agent.courier.health import Health, Note
from per_agent.courier.window import Window
from per_agent.destinations import Destination
from per_agent.spool import Spool


def writable(words: str) -> str:
    """*words* of a destination as they can be kept: without what has no UTF-8 form."""
    return words.encode(errors="replace").decode()


class Telling:
    """Notes in the spools of *windows*. For the courier's thread."""

    def __init__(
        self, destination: Destination, health: Health, attempts: Attempts, windows: Sequence[Window]
    ) -> None:
        self._destination = destination
        self._health = health
        self._attempts = attempts
        self._windows = windows
        self._teller = os.urandom(8).hex()
        self._told = 0  # of `no_answer`, what was last noted

    @property
    def due(self) -> bool:
        """Whether there are events without an answer that no note tells of."""
        return self._attempts.no_answer != self._told

    def tell(self) -> None:
        """Note it in all spools."""
        self._told = self._attempts.no_answer
        for window in self._windows:
            self.note(window.spool)

    def note(self, spool: Spool) -> None:
        """Note it in *spool*."""
        said = Note.of(
            self._health.condition,
            counts_on_arrival=self._destination.counts_on_arrival,
            no_answer=self._attempts.no_answer,
            teller=self._teller,
        )
        spool.post(lambda changes: changes.note(self._destination.name, said))
