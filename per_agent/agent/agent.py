"""`Agent`: what an application holds. Takes events in, answers for them, and hands the rest to its parts."""

import os
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from per_agent.agent.build import destination_of, lanes_of
from per_agent.agent.life import Life
from per_agent.agent.overview import Overview, overview
from per_agent.agent.passthrough import Passthrough
from per_agent.agent.statistics import Statistics
from per_agent.books import Books, total
from per_agent.destinations import Destination
from per_agent.destinations.local import Ledger
from per_agent.destinations.payment_kit import PaymentKit
from per_agent.errors import InvalidEvent
from per_agent.event import (
    Activity,
    Event,
    MeterEvent,
    Receipt,
    encode_fields,
    event_from_record,
    new_activity,
    new_meter_event,
)
from per_agent.log import Log
from per_agent.settings import (
    DeliverySettings,
    IntakeSettings,
    Settings,
    SpoolSettings,
    default_data_dir,
    load,
)
from per_agent.spool import DeadLetters, loose, snapshots


class Agent(Passthrough):
    """Takes usage events in, keeps them on disk and delivers them in the background.

    Every argument is optional. Making an agent starts nothing and touches no file; threads start with the
    first event, or with `start`. Any thread may use it, and it may be used on both sides of a fork.

    Args:
        data_dir: the folder of the spools and of the ledger; default `$STATE_DIRECTORY`, else the XDG
            state folder. Several agents and processes may share one.
        destinations: where events go; default the embedded ledger. An event goes to each destination that
            takes its kind.
        intake, spool, delivery: the tunables, each with its defaults.
        exit_timeout: seconds that a program which ends without `close` may spend delivering.

    Raises `ConfigError` when the destinations cannot work together.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        destinations: Sequence[Destination] | None = None,
        *,
        intake: IntakeSettings | None = None,
        spool: SpoolSettings | None = None,
        delivery: DeliverySettings | None = None,
        exit_timeout: float = 2.0,
    ) -> None:
        self.data_dir = default_data_dir(os.environ) if data_dir is None else Path(data_dir).absolute()
        self.destinations: tuple[Destination, ...] = tuple(destinations or [Ledger()])
        self._lanes = lanes_of(self.destinations)
        self._activity_lanes = self._lanes[Activity]
        self._livemode = next((d.livemode for d in self.destinations if isinstance(d, PaymentKit)), None)
        self._life = Life(
            self.data_dir,
            self.destinations,
            intake=intake or IntakeSettings(),
            spool=spool or SpoolSettings(),
            delivery=delivery or DeliverySettings(),
            exit_timeout=exit_timeout,
        )

    @classmethod
    def from_config(
        cls, path: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None
    ) -> Self:
        """An agent as a TOML file and the environment describe it. Raises `ConfigError`, every problem named."""
        settings = load(None if path is None else Path(path), os.environ if environ is None else environ)
        return cls.from_settings(settings)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """An agent as *settings* describe it."""
        agent = cls(
            settings.agent.data_dir,
            [destination_of(name, each) for name, each in settings.destinations.items()],
            intake=settings.intake,
            spool=settings.spool,
            delivery=settings.delivery,
            exit_timeout=settings.agent.exit_timeout,
        )
        agent._life.described = settings
        for warning in settings.warnings:
            Log().warning(warning)
        return agent

    # Intake

    def add_activity(
        self,
        billing_id: str,
        user_id: str,
        activity_type_id: str,
        at: datetime | float | str | None = None,
    ) -> Receipt:
        """Record that a user of a billed customer was active. Returns at once; never waits for disk or network.

        *at* is when it happened: a datetime with a zone, ISO 8601 text with one, or epoch seconds; default
        now. Per itself stamps an activity when it arrives there.

        Raises `InvalidEvent` with every problem named, `AgentClosed` after `close`, and by the overflow
        policy `BufferFull` or `SpoolFull`. Never raises because of an upstream.
        """
        now = time.time()
        life, lanes = self._life, self._activity_lanes
        if (
            at is None
            and type(billing_id) is str
            and type(user_id) is str
            and type(activity_type_id) is str
            and billing_id
            and user_id
            and activity_type_id
            and lanes
        ):  # the way of nearly all: there is nothing to be said against it, and no event to be made for that
            try:
                encoded = encode_fields(("a", None, billing_id, user_id, activity_type_id, now))
            except UnicodeEncodeError:
                pass  # it is said below what is wrong
            else:
                return life.intake.add(encoded, lanes)
        event = new_activity(billing_id, user_id, activity_type_id, at, life.new_id(now), now)
        return life.intake.accept(event, lanes or _nowhere("an activity"))

    def add_meter_event(  # noqa: PLR0913  (the upstream's own fields)
        self,
        event_name: str,
        *,
        customer_id: str,
        value: int | Decimal | str,
        subscription_id: str | None = None,
        identifier: str | None = None,
        timestamp: datetime | float | str | None = None,
        metadata: Mapping[str, Any] | None = None,
        source_data: Any = None,
        livemode: bool | None = None,
    ) -> Receipt:
        """Record that a customer used *value* of what the meter *event_name* counts. Returns at once.

        *value* is exact: an int, a Decimal or a plain decimal string, never a float. *identifier* is what the
        upstream tells duplicates by, unique over all meters and both modes; default a new one. *timestamp* is
        when the usage happened, default now. *livemode* defaults to the destination's.

        Raises as `add_activity` does.
        """
        now = time.time()
        event = new_meter_event(
            event_name,
            customer_id,
            value,
            identifier=self._life.new_id(now) if identifier is None else identifier,
            now=now,
            subscription_id=subscription_id,
            timestamp=timestamp,
            metadata=metadata,
            source_data=source_data,
            # The mode is the event's for life: a later change of the configuration must not move it.
            livemode=self._livemode if livemode is None else livemode,
        )
        return self._life.intake.accept(event, self._lanes[MeterEvent] or _nowhere("a meter event"))

    def add_record(self, record: Mapping[str, Any]) -> Receipt:
        """Record the event that a JSON object describes, as `add -` reads them. Raises as `add_activity` does."""
        now = time.time()
        return self.add_event(
            event_from_record(record, id=self._life.new_id(now), now=now, livemode=self._livemode)
        )

    def add_event(self, event: Event) -> Receipt:
        """Record an event that was checked already, as `new_activity` does. Raises as `add_activity` does."""
        return self._life.intake.accept(
            event, self._lanes[type(event)] or _nowhere(f"a {type(event).__name__}")
        )

    @property
    def livemode(self) -> bool | None:
        """The mode of meter events that bring none: that of the Payment Kit destination; None without one."""
        return self._livemode

    # What became of it all

    def books(self) -> dict[str, Books]:
        """Accepted, delivered, dead, dropped and pending events of each destination, over the whole data folder.

        Events that are in this process's memory count as accepted and pending. Where events are being stored
        without a break, some may be counted twice, or not yet. Raises `SpoolError` when a spool cannot be read.
        """
        counts, on_disk = self._life.at_rest(lambda unstored: (unstored, snapshots(self.data_dir)))
        unstored = [counts, loose(self.data_dir), *(each.journaled for each in on_disk)]
        return total(
            [
                {destination.name: Books() for destination in self.destinations},
                *({name: lane.books for name, lane in each.lanes.items()} for each in on_disk),
                *({lane: Books(n, pending=n) for lane, n in counts.items()} for counts in unstored),
            ]
        )

    def overview(self) -> Overview:
        """How the whole data folder is doing, the books among it; counted and raised as `books` does."""
        names = [destination.name for destination in self.destinations]
        return self._life.at_rest(lambda unstored: overview(self.data_dir, names, unstored))

    @property
    def dead_letters(self) -> DeadLetters:
        """The dead letters of the whole data folder: iterate, `requeue`, `purge`."""
        return DeadLetters(self.data_dir)

    def status(self) -> dict[str, Any]:
        """What an operator asks first, as JSON values: how each destination is doing, and this process's troubles."""
        return {"data_dir": str(self.data_dir), **self._life.status()}

    def statistics(self) -> Statistics:
        """How it is doing, in numbers and from memory: waits for nothing and reads nothing.

        The books in it are those of this process's spools; on a folder that it has for itself, those of `books`.
        """
        return self._life.statistics()

    @property
    def unready(self) -> str | None:
        """Why events are not being accepted and stored at this moment, in words; None when they are."""
        return self._life.unready

    @property
    def settled(self) -> bool:
        """Whether nothing that is pending could be delivered before some pause is over. Never waits."""
        return self._life.settled

    def pulse(self) -> list[str]:
        """Ask the threads for a sign of life. Returns the names of those that gave none since the call before.

        A slow upstream, or a disk that is full or refuses, does not keep them from it; a deadlock does, and a
        disk that does not even refuse. Never waits. For one thread at a time.
        """
        return self._life.pulse()

    def reload(self, settings: Settings) -> list[str]:
        """Take over the credentials and tunables of *settings*; a destination with new ones is tried at once.

        Returns the dotted names of what differs and needs a restart, such as `spool.max_bytes`; that stays as
        it was. Raises `ConfigError`, and then nothing has changed. Never waits.
        """
        return self._life.reload(settings)

    # Life

    def start(self, *, wait: bool = False) -> None:
        """Start the threads, and so the delivery of what earlier processes left. `add_*` does this by itself.

        *wait*: until the spool is open; then raises `SpoolError` when it cannot be. Without it, the agent goes
        on trying, and events wait in memory. Raises `AgentClosed` after `close`.
        """
        self._life.start(wait=wait)

    def flush(self, timeout: float | None = 5.0) -> bool:
        """Wait until nothing that was accepted before the call is pending any more. False when time ran out first.

        Parked events are pending: they hold a flush up. So do those that earlier processes left behind.
        """
        return self._life.flush(timeout)

    def close(self, timeout: float | None = 5.0) -> bool:
        """Take no more events in, store all, deliver what can be delivered within *timeout* seconds, and stop.

        The rest stays on the disk for the next agent on the folder; nothing is lost. It does not wait for a
        destination that is in trouble. True when nothing is pending. May be called more than once.
        """
        return self._life.close(timeout)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _nowhere(event: str) -> tuple[str, ...]:
    raise InvalidEvent({"event": f"no configured destination takes {event}"})
