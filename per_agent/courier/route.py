"""The way to one destination: which events are next, how many at once, and what their outcomes mean.

Everything here runs in the courier's thread. Three rules decide:

- Trouble of the destination (`Retry`, `Halt`) pauses it, once for all that met it; events go back to their places.
- An event's own trouble concerns that event. One that keeps failing while others go through waits by itself, then
  on the disk, so that poison costs the others a moment and not their turn. A refusal in words that nobody
  documented is tried again; it ends in the dead letters when others were delivered, else pauses the destination.
- What a meter or a customer must heal is parked on the disk, off the queue, and probed.
"""

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final, NamedTuple

import msgspec

from per_agent.backoff import Backoff
from per_agent.courier.arrivals import Arrivals
from per_agent.courier.attempts import Attempts, Delivery, writable
from per_agent.courier.health import Health, State
from per_agent.courier.limit import Limit
from per_agent.courier.parked import ParkedEvents
from per_agent.courier.parking import TROUBLED, ParkingLot
from per_agent.courier.queue import Queue
from per_agent.courier.refusals import Offer, Refusals, Verdict
from per_agent.courier.senders import Senders
from per_agent.courier.telling import Telling
from per_agent.courier.window import Item, Loaded, Window
from per_agent.destinations import Delivered, Destination, Halt, Outcome, Parked, Refused, Retry
from per_agent.event import decode
from per_agent.log import Log
from per_agent.settings import DeliverySettings
from per_agent.spool import Block, DeadLetter, Spool

_OWN_TROUBLES: Final = 3  # failures of one event while others go through, until it is parked


class _Sent(NamedTuple):
    offer: Offer
    epoch: int  # of the destination's health
    round: int  # of the limit


class Route:
    """One destination's lanes in all spools at hand, its queue, its health and its senders.

    Args:
        later: runs a call in the courier's thread, from any thread.
    """

    def __init__(
        self,
        destination: Destination,
        settings: DeliverySettings,
        later: Callable[[Callable[[], None]], None],
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.destination = destination
        self.name = destination.name
        self._settings = settings
        self._later = later
        self._clock = clock
        self._wall = wall
        self._backoff = Backoff.of(settings)
        self.health = Health(self._backoff, destination.concurrency)
        self.limit = Limit(destination.concurrency, clock())
        self.senders = Senders(destination, self.limit.now)
        self.attempts = Attempts(clock)
        self.idle = True
        """Whether nothing is in memory or in flight."""
        self._windows: list[Window] = []
        self._queue = Queue()
        self._in_flight = 0
        self._successes = 0
        self._refusals = Refusals()
        self._lot = ParkingLot(settings, clock, destination.concurrency)
        self._telling = Telling(destination, self.health, self.attempts, self._windows)
        self._parked = ParkedEvents(destination, self._lot, self.senders, self._windows, later, wall)
        self._log = Log(destination=self.name)
        self._arrivals = Arrivals(self._log, clock) if destination.counts_on_arrival else None

    # Spools

    def attach(self, spool: Spool) -> None:
        """Deliver what *spool* holds for this destination."""
        size = self._settings.window_blocks
        self._windows.append(Window(spool, self.name, size, self._arrived, self._parked.know))
        spool.post_look(
            lambda store: store.parkings(self.name),
            lambda parkings: self._later(lambda: self._parked.know(parkings)),
        )
        self._telling.note(spool)

    def detach(self, spool: Spool) -> None:
        """*spool* is drained and about to be closed."""
        self._windows[:] = [window for window in self._windows if window.spool is not spool]

    def _arrived(self, window: Window, turn: int, blocks: list[Block]) -> None:
        self._later(lambda: self._load(window, turn, blocks))

    def _load(self, window: Window, turn: int, blocks: list[Block]) -> None:
        for loaded in window.take(turn, blocks, self._wall()):
            items: list[Item] = []
            events = loaded.block.events
            for at in loaded.block.pending():
                try:
                    items.append(Item(loaded, at, decode(events[at])))
                except msgspec.MsgspecError as error:
                    loaded.dead(at, self._letter(loaded, at, "cannot be read by this version", str(error), 0))
            if self._lot:
                items = [item for item in items if not self._parked.park_known(item)]
            self._queue.load(items)
            loaded.settle(self._later, hurried=False)

    # Sending

    def advance(self) -> float | None:
        """Do what can be done now. Returns the seconds until there is more to do by time alone, or None."""
        now = self._clock()
        for window in self._windows:
            window.ask()
        due_in = self._queue.due_in(now)
        allowed = min(self.health.allowed(now), self.limit.now)
        while self._queue.ready and self._in_flight < allowed:
            self._send_next()
        self.limit.wanted |= self._queue.ready
        # Computed here, for others to look at: they must not walk through what this thread changes.
        waiting = any(True for window in self._windows for _ in window)
        self.idle = not (waiting or self._in_flight) and self._queue.empty
        waits = [
            due_in,
            self._parked.look() if self.health.open else None,
            self.health.resumes_in(now) if self._queue.ready else None,
            self._arrivals.tell_if_due() if self._arrivals is not None else None,
        ]
        return min((wait for wait in waits if wait is not None), default=None)

    def _send_next(self) -> None:
        well, queue = self.health.open, self._queue
        items = queue.take(self.destination.batch) if well else [queue.take_to_find_out()]
        self._in_flight += 1
        sent = _Sent(self._refusals.offered(), self.health.epoch, self.limit.round)
        self.senders.send(
            [item.event for item in items],
            lambda outcomes, seconds: self._later(lambda: self._sent(items, outcomes, sent, seconds)),
        )

    def _sent(self, items: Sequence[Item], outcomes: Sequence[Outcome], sent: _Sent, seconds: float) -> None:
        self._in_flight -= 1
        self.attempts.ended(len(items), seconds)
        self._refusals.answered(sent.offer, outcomes)
        answered_at = self._wall()
        again: list[Item] = []
        answered = set(map(type, outcomes)) == {Delivered}
        if answered:  # nearly always, and then in few steps
            self._delivered(items, answered_at)
        else:
            answered = self._sort(items, outcomes, sent, answered_at, again)
        if answered:
            self.limit.answered(sent.round, seconds, self._clock())
            self.senders.grow(self.limit.now)
            if self.health.answered(sent.epoch, answered_at):
                self._log.info("the destination is well again")
                self._telling.tell()
        self._telling.tell_if_due()
        self._put_back(again)
        for loaded in dict.fromkeys(map(attrgetter("loaded"), items)):
            # When nothing is left to send, and no room to read more, the next blocks wait for these to be settled.
            loaded.settle(self._later, hurried=not self._queue.ready and loaded.window.full)

    def _sort(
        self, items: Sequence[Item], outcomes: Sequence[Outcome], sent: _Sent, at: float, again: list[Item]
    ) -> bool:
        """See what became of each; what is to be offered again goes to *again*. Whether one was answered."""
        answered = False
        for item, outcome in zip(items, outcomes, strict=True):
            item.attempts += 1
            match outcome:
                case Delivered():
                    answered = True
                    self._delivered([item], at)
                case Parked(key, reason):
                    answered = True
                    self._parked.park(item, key, writable(reason), self._queue)
                case Refused(reason, certain):
                    answered = answered or certain
                    if not self._refused(item, writable(reason), sent, certain=certain):
                        self.attempts.failed("refused_uncertain")
                        self._delay(item)
                case Retry(reason, after):
                    self.attempts.failed("retry", reason)
                    # One that keeps failing while others go through speaks for itself, and for nobody else.
                    if item.own_troubles == 0 or item.seen_successes == self._successes:
                        self._fail("retrying", writable(reason), sent.epoch, after)
                    again.append(item)
                case Halt(reason):
                    self.attempts.failed("halted")
                    self._fail("halted", writable(reason), sent.epoch)
                    again.append(item)
        return answered

    def _delivered(self, items: Sequence[Item], at: float) -> None:
        self._successes += len(items)
        self.attempts.delivered()
        for loaded, some in groupby(items, attrgetter("loaded")):
            loaded.delivered(*(item.at for item in some))
        if self._arrivals is not None:
            for item in items:
                self._arrivals.note(item, at)

    def _put_back(self, items: list[Item]) -> None:
        """Offer *items* again, each in its place: an outage must not put the oldest behind the others."""
        for item in items:
            others_went = item.seen_successes not in (-1, self._successes)
            self._note_failure(item)
            if others_went and item.own_troubles >= _OWN_TROUBLES:
                words = "keeps failing while others are delivered; tried again from time to time"
                self._parked.park(item, TROUBLED, words, self._queue)
            elif others_went or item.own_troubles:
                self._delay(item)  # it did not pause the destination, perhaps: it must pause itself
            else:
                self._queue.put_back(item)

    def _note_failure(self, item: Item) -> None:
        if item.seen_successes < 0:
            item.loaded.failed += 1
        item.seen_successes = self._successes

    def _delay(self, item: Item) -> None:
        item.own_troubles += 1
        self._queue.delay(item, self._clock() + self._backoff.wait(item.own_troubles))

    def _refused(self, item: Item, reason: str, sent: _Sent, *, certain: bool) -> bool:
        """Bury *item* where that is right. False: it is to be tried again."""
        if certain:
            self._bury(item, "refused by the destination", reason)
            return True
        if item.seen_successes < 0:
            self._note_failure(item)
        match self._refusals.judge(item, sent.offer, self._settings.refusal_attempts):
            case Verdict.EVENT:
                self._bury(item, f"refused {item.refusals} times, while others were delivered", reason)
                return True
            case Verdict.ALL:
                self._fail("halted", f"every event is refused: {reason}", sent.epoch)
        return False

    def _bury(self, item: Item, reason: str, words: str) -> None:
        letter = self._letter(item.loaded, item.at, reason, words, item.attempts)
        item.loaded.dead(item.at, letter)
        self._log.error("an event is dead", reason=reason, words=words)

    def _letter(self, loaded: Loaded, at: int, reason: str, words: str, attempts: int) -> DeadLetter:
        return DeadLetter(loaded.block.events[at], reason, words, attempts, self._wall())

    # Condition

    def settle_all(self) -> None:
        """Hand everything that was decided to the spool: nothing more will come."""
        for loaded in (loaded for window in self._windows for loaded in window):
            loaded.settle_rest(self._later)
        if self._arrivals is not None:
            self._arrivals.tell()

    @property
    def stuck(self) -> bool:
        """Whether nothing can go on before a pause is over."""
        return self.health.allowed(self._clock()) == 0 and self._in_flight == 0

    def tune(self, settings: DeliverySettings) -> None:
        """Go on with other pauses, probes and bounds. Pauses that have begun last as long as they were to."""
        self._settings = settings
        self._backoff = Backoff.of(settings)
        self.health.tune(self._backoff)
        self._lot.tune(settings)
        for window in self._windows:
            window.size = settings.window_blocks

    def hurry(self) -> None:
        """Something was mended, perhaps: try again at once, whatever pause is going on."""
        self.health.hurry()
        self._queue.due_in(math.inf)

    def delivery(self) -> Delivery:
        """How it goes. For any thread."""
        known = (self._lot.oldest, *(window.oldest for window in tuple(self._windows)))
        oldest = min((moment for moment in known if moment is not None), default=None)
        counts = self.destination.counts_on_arrival
        return self.attempts.look(self.health.condition, oldest, self.limit.now, counts_on_arrival=counts)

    @property
    def parked(self) -> list[str]:
        """What parked events wait for."""
        return list(self._lot)

    def _fail(self, state: State, reason: str, epoch: int, after: float | None = None) -> None:
        if state == "retrying" and self.health.open and epoch == self.health.epoch:
            # Once for all that met it; what a lone request meets is no matter of numbers.
            self.limit.refused(self._clock())
        if self.health.failed(state, reason, epoch, self._clock(), self._wall(), after):
            say = self._log.error if state == "halted" else self._log.warning
            say("the destination is in trouble: its events are kept", state=state, reason=reason)
            self._telling.tell()
