"""What of one destination is parked: events that wait on the disk for a meter, a customer, or for better times."""

from collections.abc import Callable, Sequence
from functools import partial

from per_agent.courier.parking import TROUBLED, ParkingLot
from per_agent.courier.queue import Queue
from per_agent.courier.senders import Senders
from per_agent.courier.window import Item, Window
from per_agent.destinations import Destination
from per_agent.log import Log
from per_agent.spool import Parking


class ParkedEvents:
    """Parks events, has their keys probed, and lets them go on. For the courier's thread.

    Args:
        lot: the keys, and when to look.
        windows: those of the destination; a list that its owner changes in place.
        later: runs a call in the courier's thread, from any thread.
    """

    def __init__(
        self,
        destination: Destination,
        lot: ParkingLot,
        senders: Senders,
        windows: list[Window],
        later: Callable[[Callable[[], None]], None],
        wall: Callable[[], float],
    ) -> None:
        self._destination = destination
        self._lot = lot
        self._senders = senders
        self._windows = windows
        self._later = later
        self._wall = wall
        self._log = Log(destination=destination.name)

    def park(self, item: Item, key: str, reason: str, queue: Queue) -> None:
        """Park *item*, and what of *queue* waits for the same where that is new."""
        now = self._wall()
        item.loaded.parked(item.at, Parking(key, reason, now))
        if self._lot.add(key, now):
            self._log.warning("events are parked", waits_for=key.partition(":")[0], reason=reason)
            for waiting in queue.withdraw(lambda other: key in self._keys(other)):
                waiting.loaded.parked(waiting.at, Parking(key, reason, now))
                waiting.loaded.settle(self._later, hurried=False)

    def park_known(self, item: Item) -> bool:
        """Park *item* if others wait already for what it would wait for, as far as is known without asking."""
        if not self._lot:
            return False
        key = next((key for key in self._keys(item) if key in self._lot), None)
        if key is None:
            return False
        item.loaded.parked(item.at, Parking(key, "waits with the others", self._wall()))
        return True

    def _keys(self, item: Item) -> Sequence[str]:
        try:
            return self._destination.parking_keys(item.event)
        except Exception:  # noqa: BLE001  (a defect of a destination must not lose its events)
            self._log.bug("a destination met a defect; its events are kept")
            return ()

    def know(self, parkings: Sequence[Parking]) -> None:
        """What is parked on the disk is looked after, whatever became of its key meanwhile."""
        for parking in parkings:
            self._lot.add(parking.key, parking.since)

    def look(self) -> float | None:
        """Look after those whose time has come. Returns the seconds until the next look."""
        for key in self._lot.due():
            if key == TROUBLED:  # nothing but time can be asked
                self._answered(key, True)
            else:
                self._senders.probe(key, partial(self._answered, key))
        return self._lot.next_look_in()

    def _answered(self, key: str, may_go_on: bool) -> None:
        self._later(lambda: self._looked(key, may_go_on))

    def _looked(self, key: str, may_go_on: bool) -> None:
        self._lot.looked(key, may_go_on=may_go_on)
        if not may_go_on:
            return
        self._log.info("parked events go on", waits_for=key.partition(":")[0])
        for window in self._windows:
            self._unpark(window, key)

    def _unpark(self, window: Window, key: str) -> None:
        def moved(all_of_them: bool) -> None:
            window.rewind()
            if not all_of_them:
                self._unpark(window, key)

        window.spool.post(
            lambda changes: changes.unpark(self._destination.name, key),
            lambda done: self._later(lambda: moved(done)),
        )
