"""What became of one event at one attempt. The upstream's answers are values, never exceptions."""

import msgspec


class Delivered(msgspec.Struct, frozen=True):
    """The upstream has the event: it took it now, or says that it already had it."""


class Retry(msgspec.Struct, frozen=True):
    """Trouble of the whole destination that time heals: no connection, 5xx, 429. Slows the destination.

    Attributes:
        reason: what happened, in the upstream's or the network's words.
        after: seconds that the upstream asked to wait (`Retry-After`), or None.
    """

    reason: str
    after: float | None = None


class Parked(msgspec.Struct, frozen=True):
    """The event waits for something other than time, such as an inactive meter.

    Attributes:
        key: what it waits for, such as `meter:live:api.calls`; all events with one key go on together
            when `Destination.probe` says so.
        reason: what the upstream said.
    """

    key: str
    reason: str


class Refused(msgspec.Struct, frozen=True):
    """The upstream does not want this event, whatever becomes of the others.

    Attributes:
        reason: the upstream's own words.
        certain: False where the upstream's vocabulary is undocumented, so that the words may as well mean
            trouble that concerns everybody. The courier then tries the event again a few times, and buries
            it only when other events went through meanwhile.
    """

    reason: str
    certain: bool = True


class Halt(msgspec.Struct, frozen=True):
    """Trouble of the whole destination that a person must heal: credentials, a wrong address, a proxy.

    The queue is kept, the destination pauses and is tried again, ever more rarely, until it is well.
    """

    reason: str


Outcome = Delivered | Retry | Parked | Refused | Halt
