"""What dead processes left: their spools are adopted, delivered, and absorbed when nothing is in them any more."""

import itertools
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from per_agent import failpoint
from per_agent.courier import Courier
from per_agent.event import Progress
from per_agent.journal import files as journals
from per_agent.log import Log
from per_agent.settings import IntakeSettings, SpoolSettings
from per_agent.spool import Claim, Spool, abandoned, still_there, take_journals

_AT_ONCE: Final = 4  # spools taken in one look, so that the courier's thread is soon back at its work


class Inheritance:
    """The adopted spools of one engine. For the courier's thread; the attributes are for any to look at.

    Attributes:
        spools: those that are adopted.
        complete: whether a look has found no more of them.
        intake: the tunables for the next ones.
    """

    def __init__(
        self,
        data_dir: Path,
        names: Sequence[str],
        own: Spool,
        progress: Progress,
        *,
        intake: IntakeSettings,
        settings: SpoolSettings,
    ) -> None:
        self._data_dir = data_dir
        self._names = names
        self._own = own
        self._progress = progress
        self._settings = settings
        self._look_at = 0.0
        self._log = Log()
        self.ending = threading.Event()
        self.intake = intake
        self.spools: list[Spool] = []
        self.complete = False

    def tend(self, courier: Courier) -> None:
        """Absorb adopted spools that are drained, and look for new ones when it is time."""
        for spool in list(self.spools):
            self._absorb_if_drained(spool, courier)
        if time.monotonic() < self._look_at or self._own.folder is None:
            return
        if self.adopt(courier) < _AT_ONCE:  # else there may be more: the next look comes soon
            self._look_at = time.monotonic() + self._settings.adopt_interval
            self.complete = True

    def adopt(self, courier: Courier) -> int:
        """Take some of the spools that dead processes left. Returns how many."""
        if self.ending.is_set() or self._own.folder is None:
            return 0
        for taken in take_journals(self._data_dir, self._names, self._own.folder):
            self._own.recover(taken)
        for spool in (self._own, *self.spools):
            spool.look_again()
        claims = list(itertools.islice(abandoned(self._data_dir, self._names), _AT_ONCE))
        for claim in claims:
            self._adopt(claim, courier)
        return len(claims)

    def _adopt(self, claim: Claim, courier: Courier) -> None:
        # Those who wait for this agent are told of the progress of adopted spools too, but not of their end.
        spool = Spool(
            lambda _: claim,
            None,
            Progress(lambda: None),
            intake=self.intake,
            settings=self._settings,
            committed=self._progress.announce,
        )
        self._log.info("adopted a spool that a dead process left", spool=claim.id)
        self.spools.append(spool)
        spool.start()
        courier.attach(spool)

    def _absorb_if_drained(self, spool: Spool, courier: Courier) -> None:
        """Carry the books of *spool* over and remove its folder, in steps: this thread must not wait."""
        if spool.folder is None or spool.trouble is not None:
            return
        books = spool.books
        if any(counts.pending or counts.dead > counts.purged for counts in books.values()):
            return  # a dead letter stays where it is: the folder is kept for it
        if spool.unreadable or journals(spool.folder):
            return  # what is left of a damaged journal is kept; or one is still to be recovered, or cannot be
        if any(still_there(self._data_dir, mark) for mark in spool.marks):
            return  # its books hold those of a spool that is still to be removed: the mark must not go first
        courier.detach(spool)
        claim = spool.retire()
        if claim is None:
            return  # it is ending; the next look finds it ended
        self.spools.remove(spool)

        def absorbed(_: object) -> None:
            failpoint.reach("books absorbed")
            claim.remove()
            self._own.post(lambda changes: changes.forget(claim.id))

        self._own.post(lambda changes: changes.absorb(claim.id, books), absorbed)
