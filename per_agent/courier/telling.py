"""What the courier says of one destination, noted in the spools for those who look at them from outside."""

import os

from per_agent.courier.attempts import Attempts
from per_agent.courier.health import Health, Note
from per_agent.courier.window import Window
from per_agent.destinations import Destination
from per_agent.spool import Spool


class Telling:
    """Notes in the spools how *destination* is doing. For the courier's thread.

    Args:
        windows: those of the destination; a list that its owner changes in place.
    """

    def __init__(
        self, destination: Destination, health: Health, attempts: Attempts, windows: list[Window]
    ) -> None:
        self._destination = destination
        self._health = health
        self._attempts = attempts
        self._windows = windows
        self._no_answer = 0  # what was last noted of it
        self._teller = os.urandom(8).hex()

    def tell_if_due(self) -> None:
        """Say it where more events than was said are without an answer."""
        if self._attempts.no_answer != self._no_answer:
            self.tell()

    def tell(self) -> None:
        """Say it in all spools."""
        self._no_answer = self._attempts.no_answer
        for window in self._windows:
            self.note(window.spool)

    def note(self, spool: Spool) -> None:
        """Say it in *spool*."""
        said = Note.of(
            self._health.condition,
            counts_on_arrival=self._destination.counts_on_arrival,
            no_answer=self._attempts.no_answer,
            teller=self._teller,
        )
        spool.post(lambda changes: changes.note(self._destination.name, said))
