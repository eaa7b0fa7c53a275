"""The folder that a spooler holds and the store in it: found, opened, and found again when somebody deletes it."""

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Final

from per_agent import journal
from per_agent.errors import SpoolError
from per_agent.log import Log
from per_agent.spool import damage, forks, salvage, witness
from per_agent.spool.ballast import Ballast, says_full
from per_agent.spool.folder import Claim
from per_agent.spool.inflow import Inflow
from per_agent.spool.recovery import Recovery
from per_agent.spool.store import STORAGE_TROUBLE, Store
from per_agent.spool.sweep import Sweep
from per_agent.spool.trouble import Trouble
from per_agent.spool.work import Work, nothing

_OPEN_TRIES: Final = 3  # of a spool that was there before, until another is taken instead


class Home:
    """Where a spooler keeps its events. For its thread; the attributes are for any to look at.

    *claim* gives a folder, other than those named: which could not be opened. *settled*: there is no other
    to go to when this one cannot be opened or is gone. *works* go into the next commit; *later* has a work done,
    but for when the spooler ends.
    """

    def __init__(
        self,
        claim: Callable[[frozenset[str]], Claim],
        disk: Trouble,
        works: list[Work],
        later: Callable[[Work], None],
        *,
        settled: bool,
    ) -> None:
        self._works = works
        self._later = later
        self._unchecked: int | None = None
        self._claim = claim
        self._disk = disk
        self._settled = settled
        self._unusable: set[str] = set()
        self.log = Log()
        self.living: set[Path] = (
            set()
        )  # journals of other processes that lie here, and are not to be recovered yet
        self.opened: Future[None] = Future()
        self.held: Claim | None = None
        self.store: Store | None = None

    def open(self) -> bool:
        """Hold a folder and open the store in it. False when that is to be tried again."""
        try:
            if self.held is None:
                self.held = self._claim(frozenset(self._unusable))
            self.store = self._opened(self.held)
        except STORAGE_TROUBLE as error:
            self._could_not_open(error)
            return False
        self.log = self._disk.log = Log(spool=self.held.id)
        self._disk.over()
        return True

    def ready(self) -> None:
        """All that belongs to the spool is in its place."""
        if not self.opened.done():
            self.opened.set_result(None)

    @property
    def is_open(self) -> bool:
        """Whether a folder is held and the store in it open."""
        return self.held is not None and self.store is not None

    def _opened(self, held: Claim) -> Store:
        """The store of the spool that is *held*: what is damaged of it is set aside first."""
        salvage.finish(held.folder)
        seen = None if held.fresh else witness.read(held)
        why = self._disk.damage or (None if held.fresh else damage.before_opening(held.folder, seen))
        if why is None:
            try:
                store = _opened(held.folder)
            except Exception as error:
                why = None if held.fresh else damage.at_opening(error, held.folder)
                if why is None:
                    raise
            else:
                why = None if held.fresh else store.damage(seen)
                if why is None:
                    self._unchecked = None if held.fresh else store.unchecked()
                    return store
                store.close()
        self._unchecked = None
        report = salvage.replace(held.folder, why, witness.read(held))
        self._disk.damage = None
        Log().error("a damaged spool was set aside", spool=held.id, told=report.words, lost=report.lost)
        return _opened(held.folder)

    def note(self) -> None:
        """Note beside the database what the last commit left."""
        if self.held is not None and self.store is not None:
            with suppress(OSError):
                witness.write(self.held, self.store.seq, self.store.books)

    def give_up(self) -> None:
        """Close a store that is damaged."""
        if self.store is not None:
            with suppress(*STORAGE_TROUBLE):
                self.store.close()
            self.store = None

    def leave(self, *, keep_claim: bool) -> None:
        """Close the store; let go of the folder, but where *keep_claim* says that somebody else will."""
        if self.store is not None:
            self.store.close()
        if self.held is not None and not keep_claim:
            self.held.release()

    def settle_in(self, inflow: Inflow) -> bool:
        """Have the journal lie in the folder. False: the disk refused, and nothing may be committed."""
        assert self.held is not None
        try:
            inflow.settle_in(self.held.folder)
        except OSError as error:
            self._disk.met(error)
            return False
        return True

    def recoveries(self, inflow: Inflow) -> list[Work]:
        """What is to be done for the journals of dead processes that lie in the folder, and to look it through."""
        assert self.held is not None
        assert self.store is not None
        found = {path.stem: path for path in journal.files(self.held.folder)}
        others = found.keys() - ({inflow.journal.id} if inflow.journal is not None else set())
        works = self._of_the_dead([found[name] for name in sorted(others)], inflow)
        if self.store.journals - found.keys():
            works.append(Work(lambda changes: changes.forget_journals(found), nothing, nothing))
        if self._unchecked is not None:
            works.append(Sweep(self._unchecked, self._later).work)
        return works

    def _of_the_dead(self, paths: list[Path], inflow: Inflow) -> list[Work]:
        """Their recovery. A journal whose process lives is left to it: what is in it is in memory, too.

        That process had this folder and goes on with another, or it is dying, and has not let go of all it held.
        """
        with forks.section():  # a child that is forked meanwhile would inherit the locks, and keep them
            dead = [path for path in paths if journal.is_abandoned(path)]
        self.living = set(paths) - set(dead)
        return [self.recovery(path, inflow) for path in dead]

    def look_again(self, inflow: Inflow) -> None:
        """Have those journals recovered whose process lived when they were found here, and is dead now."""
        if self.held is None or not self.is_open:
            return
        there = [path for path in journal.files(self.held.folder) if path in self.living]
        self._works += self._of_the_dead(there, inflow)

    def recovery(self, path: Path, inflow: Inflow) -> Work:
        """The work of storing what a dead process left in the journal at *path*."""
        recovery = Recovery(path, inflow.block_events, self.log)
        return Work(recovery.apply, recovery.done, recovery.failed, stirs=True)

    def _could_not_open(self, error: BaseException) -> None:
        """Keep the claim and try again: a spool that is opened without its lock would be opened twice."""
        self._disk.met(error)
        held = self.held
        if says_full(error):
            pass  # another would have no more room
        elif held is not None and not held.fresh and self._disk.failures >= _OPEN_TRIES and not self._settled:
            # It was there before, so another will do; a new one that cannot be opened would only be the next.
            self.log.error("a spool cannot be opened and is left alone", spool=held.id)
            self._unusable.add(held.id)
            self._disk.damage = None  # of that one; the next may be sound
            held.release()
            self.held = None
        if not self.opened.done():
            words = (
                error if isinstance(error, SpoolError) else SpoolError(f"the spool cannot be opened: {error}")
            )
            self.opened.set_exception(words)

    def is_gone(self) -> bool:
        """Whether somebody deleted the folder: then it is let go of, and what was in it is lost."""
        assert self.store is not None
        if self.store.in_place():
            return False
        lost = {lane: books.pending for lane, books in self.store.books.items() if books.pending}
        self.log.error("the spool's folder was deleted under way", events_lost=lost)
        self.store.close()
        self.store = None
        if self.held is not None:
            self.held.release()
            self.held = None
        return True


def _opened(folder: Path) -> Store:
    """The store in *folder*. To open it takes room on the disk: on a full one, that of the ballast."""
    try:
        return Store(folder)
    except STORAGE_TROUBLE as error:
        if not (says_full(error) and Ballast(folder).release()):
            raise
        return Store(folder)
