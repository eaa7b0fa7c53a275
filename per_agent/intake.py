"""The intake: the bounded hand-over from the caller's thread to the spool.

The way in takes no lock and makes no system call. `deque.append` and `len` are single operations of the
interpreter, so a caller that is interrupted anywhere (by a thread switch, a signal handler that records an
event itself, an exception) leaves nothing half-done and holds nothing that others need. Two marks tell the
caller what else there is to do: at `_room` events the buffer takes no more, at `_mark` somebody wants to
know; the spooler sets both before it looks, so nothing falls between its looking and its sleeping.

An event is in the journal before it is in the buffer, so that it outlives the process from then on. The
process's first event makes the journal, which takes some system calls, once.
"""

import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from per_agent.errors import AgentClosed, BufferFull, PerAgentError
from per_agent.event import Event, Identifiers, Progress, Receipt, check_length, encode
from per_agent.journal import RECORD, ROOM, WHOLE, Journal, JournalFull, Place, Slots, Write, no_slots
from per_agent.log import Log
from per_agent.settings import IntakeSettings
from per_agent.spool import by_lane

_NEVER: Final = 2**62
_LOG_EVERY: Final = 30.0  # seconds between two lines that say that events are being refused


class Intake:
    """Takes events in. `accept` and `add` are for any thread; the rest is the spooler's side of the buffer.

    Attributes:
        add: `(encoded, lanes) -> Receipt`: as `accept`, of an event that is encoded, by `encode` or by
            `encode_fields`.

    Args:
        settings: how much may wait, and what happens when no more may.
        progress: told by the spooler when something was stored.
        wake: starts the spooler or wakes it; must not block.
        make_journal: makes the journal when the first event comes, with the identifiers of its events, or raises
            `OSError`; None where there is to be none.
    """

    def __init__(
        self,
        settings: IntakeSettings,
        progress: Progress,
        wake: Callable[[], None],
        make_journal: Callable[[Identifiers], Journal] | None = None,
    ) -> None:
        self._capacity = settings.buffer_events
        self._policy = settings.overflow
        self._progress = progress
        self._wake = wake
        self._waiting: deque[Receipt] = deque()
        self._identifiers = Identifiers()
        self._make_journal = make_journal
        self._journals: dict[str, Journal] = {}  # the one; a dict, since `setdefault` needs no lock
        self._keep: Write = self._keep_first
        self.journal_trouble: str | None = None
        """Why there is no journal, in words."""
        self._room = self._capacity
        self._mark = 1
        self.since = time.time()
        """When it was last seen that an event waits, in epoch seconds."""
        self._orphaned = False
        self._closed = False
        self._sealed = False
        self._refusal: PerAgentError | None = None
        self._counting = threading.RLock()  # on the overflow path only, where a signal handler may come again
        self._dropped: Counter[str] = Counter()
        self._overflows: Counter[str] = Counter()
        self._logged_at = float("-inf")
        self._log = Log()
        self.add = self._adder(no_slots())

    def accept(self, event: Event, lanes: tuple[str, ...]) -> Receipt:
        """Take *event* in for *lanes*. Never waits for a disk or a network, but by the policy `block`.

        Raises `InvalidEvent` when the event cannot be encoded, `AgentClosed` after `close`, and by the policy
        `raise` `BufferFull`, or `SpoolFull` when the disk limit is reached; the event is then not accepted.
        """
        return self.add(encode(event), lanes)

    def _adder(  # noqa: C901  (one way for nearly all: each call less counts)
        self, slots: Slots
    ) -> Callable[[bytes, tuple[str, ...]], Receipt]:
        # A closure, since its names cost the caller less than an object's attributes do.
        waiting, append, number = self._waiting, self._waiting.append, self._identifiers.number
        progress, identifiers = self._progress, self._identifiers
        take, more, pack, checksum = slots.take, slots.more, RECORD.pack_into, zlib.adler32

        def add(encoded: bytes, lanes: tuple[str, ...]) -> Receipt:
            place: Place
            while True:
                if len(waiting) < self._room:
                    mine = number()  # not sooner: a number that is drawn in vain is a gap in what is stored
                    try:
                        if lanes is slots.usual and len(encoded) <= ROOM:
                            # As `Journal.write`, without that call: it would be a twentieth of it all.
                            try:
                                place = take()
                            except IndexError:
                                place = more()
                            said = checksum(encoded, mine)
                            try:
                                pack(slots.file, place, said, mine, encoded, WHOLE)
                            except BaseException:
                                slots.release((place,))
                                raise
                        else:
                            place = self._keep(encoded, lanes, mine)
                        break
                    except JournalFull:
                        pass
                if not self._overflow(encoded, lanes):
                    return Receipt(encoded, lanes, number(), progress, identifiers, dropped=True)
            receipt = None
            try:
                receipt = Receipt(encoded, lanes, mine, progress, identifiers, place)
                append(receipt)
                # Once sealed, the mark counts no more: an earlier caller may be resetting it just now.
                if len(waiting) >= self._mark or self._sealed:
                    self._attend(receipt)
            except AgentClosed:
                raise
            except BaseException:  # out of a signal handler: the event may be in, and nobody told
                if receipt is None:
                    self._void(place)
                self._mark = 1
                self._wake()
                raise
            return receipt

        return add

    # The journal

    @property
    def journal(self) -> Journal | None:
        """The journal of this process, once it is made."""
        return self._journals.get("own")

    def open_journal(self) -> None:
        """Make the journal, where there is to be one and is none. Where that fails events are in memory only."""
        if self._make_journal is None:
            self._keep = _nowhere
        if self._make_journal is None or self._journals:
            return
        try:
            made = self._make_journal(self._identifiers)
        except OSError as error:
            self._keep = _nowhere
            if self.journal_trouble is None:
                self._log.aside(
                    "there is no journal: until events are stored, they are in memory only", reason=str(error)
                )
            self.journal_trouble = f"there is no journal: {error.strerror or error}"
            return
        # Another thread, or a signal handler in this one, may have been faster.
        if self._journals.setdefault("own", made) is made:
            self._keep = made.write
            self.add = self._adder(made.slots)
            self.journal_trouble = None
            if self._orphaned:  # a signal handler forked while it was made: it is the parent's
                made.let_go()
        else:
            made.remove()

    def _keep_first(self, encoded: bytes, lanes: tuple[str, ...], number: int) -> Place:
        self.open_journal()
        journal = self.journal
        return None if journal is None else journal.write(encoded, lanes, number)

    def _void(self, place: Place) -> None:
        """The event at *place* was not accepted after all."""
        if self.journal is not None:
            self.journal.release([place])

    def orphan(self) -> None:
        """In a forked child: this and its journal are the parent's."""
        self._orphaned = True
        if self.journal is not None:
            self.journal.let_go()

    def close(self) -> None:
        """Take no more events in. What was accepted stays for the spooler."""
        self._closed = True
        self._room = 0

    def newest(self) -> Receipt | None:
        """The receipt of the last event that waits in the buffer."""
        try:
            return self._waiting[-1]
        except IndexError:
            return None

    def in_memory(self) -> dict[str, int]:
        """For each lane, the events that wait in the buffer."""
        return by_lane(tuple(self._waiting))

    @property
    def refusing(self) -> str | None:
        """Why no event is taken in, in words, or None."""
        if self._closed:
            return "the agent is closed"
        if self._refusal is not None:
            return str(self._refusal)
        full = len(self._waiting) >= self._capacity
        return f"{self._capacity} events wait for the disk" if full else None

    @property
    def overflows(self) -> dict[str, int]:
        """How often the overflow policy was applied, by what it did: `raised`, `blocked`, `dropped`."""
        return {what: self._overflows[what] for what in ("raised", "blocked", "dropped")}

    def _overflow(self, encoded: bytes, lanes: tuple[str, ...]) -> bool:
        """Apply the policy. True: try again, there may be room. False: the event was dropped."""
        if self._closed:
            raise AgentClosed("the agent was closed: the event was not accepted")
        reason = self._refusal or BufferFull(
            f"{len(self._waiting)} events wait for the disk: the event was not accepted"
        )
        self._tell_overflow(reason)
        if self._policy == "raise":
            raise type(reason)(*reason.args)  # a fresh one: a shared one would collect the tracebacks of all
        if self._policy == "block":
            self._progress.wait(lambda: self._closed or self._has_room(encoded), None)
            return True
        with self._counting:
            self._dropped.update(lanes)
        self._wake()
        return False

    def _has_room(self, encoded: bytes) -> bool:
        journal = self.journal
        return len(self._waiting) < self._room and (journal is None or journal.fits(encoded))

    def _tell_overflow(self, reason: PerAgentError) -> None:
        """Count, and say so once in a while: a line for each event would cost more than the event."""
        done = {"raise": "raised", "block": "blocked", "drop_newest": "dropped"}[self._policy]
        with self._counting:
            self._overflows[done] += 1
            count = self._overflows[done]
            now = time.monotonic()
            if now < self._logged_at + _LOG_EVERY:
                return
            self._logged_at = now
        self._log.aside("events do not fit", reason=str(reason), policy=self._policy, so_far=count)

    def _attend(self, receipt: Receipt) -> None:
        if self._sealed:
            # The spooler looked for the last time before or after this event came: only it knows.
            try:
                self._waiting.remove(receipt)
            except ValueError:
                return
            self._void(receipt._place)  # noqa: SLF001  (the intake makes receipts)
            raise AgentClosed("the agent was closed: the event was not accepted")
        self._mark = _NEVER
        self.since = time.time()
        self._wake()

    # The spooler's side (`per_agent.spool.Source`)

    def take(self, limit: int) -> list[Receipt]:
        taken: list[Receipt] = []
        try:
            for _ in range(min(limit, len(self._waiting))):
                taken.append(self._waiting.popleft())  # noqa: PERF401  (what was taken must survive the exception)
        except IndexError:
            pass  # a caller that came after the seal took its own out again
        return taken

    def take_dropped(self) -> dict[str, int]:
        if not self._dropped:
            return {}
        with self._counting:
            dropped, self._dropped = self._dropped, Counter()
        return dict(dropped)

    def waiting(self) -> int:
        return len(self._waiting)

    def wake_at(self, count: int | None) -> None:
        if not self._sealed:
            self._mark = _NEVER if count is None else count

    def refuse(self, reason: PerAgentError | None) -> None:
        self._refusal = reason
        if not self._closed:
            self._room = self._capacity if reason is None else 0
        if reason is None:
            self._progress.announce()  # those that wait for room: a commit may not come to tell them

    def seal(self) -> None:
        self.close()
        self._sealed = True
        self._mark = 0


def _nowhere(encoded: bytes, lanes: tuple[str, ...], number: int) -> Place:  # noqa: ARG001  (as `Journal.write`)
    """Without a journal an event is in memory only, until it is stored."""
    check_length(encoded)
    return None
