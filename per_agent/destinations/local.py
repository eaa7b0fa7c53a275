"""The embedded ledger as a destination: the default when nothing else is configured."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from per_agent.destinations.outcome import Delivered, Halt, Outcome, Parked, Retry
from per_agent.errors import Unavailable
from per_agent.event import Activity, Event, MeterEvent
from per_agent.ledger import (
    Activities,
    Connection,
    Database,
    MeterEvents,
    Meters,
    counted,
    insert_activities,
    insert_meter_events,
    milliseconds,
    totals,
)

_CALL: Final = "POST /v1/events"


class Ledger:
    """A usage ledger in one SQLite file, which threads and processes may share.

    Takes both kinds of events, each counted once by its identifier; *delivered* means that it is on the disk.
    `get_report` answers as Per does, `meters` and `meter_events` as Payment Kit does. An event whose meter
    does not exist or is inactive waits until it does.

    Args:
        path: the file; `ledger.db` in the agent's data folder where none is given.
        name: the destination's name.
        clock: epoch seconds, for what happens now: events bring their own times.
    """

    takes: frozenset[type[Event]] = frozenset({Activity, MeterEvent})
    # One fsync for each batch: larger ones gain little, and keep the file from others for longer.
    batch = 2000
    # SQLite has one writer at a time.
    concurrency = 1
    counts_on_arrival = False

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        name: str = "ledger",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._clock = clock
        self._database = Database(None if path is None else Path(path), name=name)
        self._activities = Activities(self._database, clock)
        self.meters = Meters(self._database, clock)
        self.meter_events = MeterEvents(self._database, clock)

    def open(self, data_dir: Path) -> None:
        """Choose the file; it is opened, or made, by the first call that needs it."""
        if self._database.path is None:
            self._database.path = data_dir / "ledger.db"

    def send(self, events: Sequence[Event]) -> Sequence[Outcome]:
        """Count *events* in one transaction; one that must wait does not disturb the others.

        Never raises for what the disk or other processes did: then no event is counted, and all are
        answered `Retry`, or `Halt` where a person must heal it.
        """
        try:
            return self._database.write(_CALL, lambda connection: self._insert(connection, events))
        except Unavailable as error:
            reason = f"{self.name}: {error.words}"
            outcome = Retry(reason) if error.status == 503 else Halt(reason)
            return [outcome] * len(events)

    def probe(self, key: str) -> bool:
        """Whether the meter that *key* (`meter:live:NAME` or `meter:test:NAME`) names is active now."""
        kind, _, rest = key.partition(":")
        mode, _, event_name = rest.partition(":")
        if kind != "meter":
            return True  # not parked by this ledger: to send the events is how to find out
        try:
            return self.meters.is_active(event_name, livemode=mode == "live")
        except Unavailable:
            return False

    def parking_keys(self, event: Event) -> Sequence[str]:
        """The meter that a meter event waits for."""
        return (_parking_key(event),) if isinstance(event, MeterEvent) else ()

    def close(self) -> None:
        """Close the file, when the calls that are under way have ended. Later calls open it again."""
        self._database.close()

    def get_report(self, start: object = None, end: object = None) -> dict[str, Any]:
        """Unique users by activity type and billing ID, in Per's JSON; see `Activities.get_report`."""
        return self._activities.get_report(start, end)

    def counted(self, identifiers: Iterable[str]) -> set[str]:
        """Those of *identifiers* that are counted here. Raises `Unavailable`."""
        return counted(self._database, identifiers)

    def totals(self) -> tuple[int, int]:
        """How many activities and how many meter events are counted here. Raises `Unavailable`."""
        return totals(self._database)

    def _insert(self, connection: Connection, events: Sequence[Event]) -> list[Outcome]:
        outcomes: list[Outcome] = [Delivered()] * len(events)
        insert_activities(connection, [event for event in events if isinstance(event, Activity)])
        metered = [(at, event) for at, event in enumerate(events) if isinstance(event, MeterEvent)]
        now = milliseconds(self._clock())
        reasons = insert_meter_events(connection, [event for _, event in metered], now)
        for (at, event), reason in zip(metered, reasons, strict=True):
            if reason is not None:
                outcomes[at] = Parked(_parking_key(event), reason)
        return outcomes


def _parking_key(event: MeterEvent) -> str:
    return f"meter:{'test' if event.livemode is False else 'live'}:{event.event_name}"
