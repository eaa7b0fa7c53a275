"""What the spool keeps beside blocks: dead letters, parkings, and what a settlement says."""

from collections.abc import Sequence

import msgspec


class DeadLetter(msgspec.Struct, frozen=True, array_like=True):
    """An event that its destination refused for good, kept until an operator requeues or purges it.

    Attributes:
        event: the encoded event, with its identifier.
        reason: why it is here, in our words.
        words: what the upstream said.
        attempts: how often it was offered.
        at: when it was given up, in epoch seconds.
    """

    event: bytes
    reason: str
    words: str
    attempts: int
    at: float


class FiledLetter(msgspec.Struct, frozen=True):
    """A dead letter and where it lies."""

    spool: str
    lane: str
    number: int
    letter: DeadLetter


class Parking(msgspec.Struct, frozen=True, array_like=True):
    """Why events wait for something other than time. `since` is in epoch seconds."""

    key: str
    reason: str
    since: float


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """What became of events of one block, by their positions in it. Those of the first three are disjoint.

    Attributes:
        delivered: positions that the destination has.
        dead: positions that it refused for good, each with its letter.
        parked: for each parking, the positions that wait for it.
        late: those of `delivered` that arrived noticeably later than they happened.
        crossed: those of `delivered` that arrived in another month than they happened.
    """

    delivered: Sequence[int] = ()
    dead: Sequence[tuple[int, DeadLetter]] = ()
    parked: Sequence[tuple[Parking, Sequence[int]]] = ()
    late: Sequence[int] = ()
    crossed: Sequence[int] = ()
