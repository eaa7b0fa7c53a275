"""A journal's bytes: a head with the lanes that events go to, then slots of one size.

::

    head    magic, format, slot size, number of slots, made at (ms), checksum; then the routes, each with its own
    slot    checksum, stamp, length and payload, state

The state is a slot's last byte and is written last: a process that dies over a slot leaves it free, and the
call that was writing has not returned. So a slot that is taken and whose checksum is wrong was damaged later.
A stamp is the event's number of `Identifiers`, and its route. An event that is too long for a slot lies
in several, each a part that says whose it is.

The checksum is Adler-32, begun with the stamp's low half: for a short text it costs the caller a sixth of a
CRC-32, and it has to stand for some moments only. The block that an event comes to lie in has a CRC.
"""

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from per_agent import failpoint
from per_agent.errors import SpoolCorrupt
from per_agent.event import STEP

FORMAT: Final = 2
HEAD: Final = 16 * 1024
"""Bytes before the first slot."""
SLOT: Final = 192
"""Bytes of a slot: an activity with long ids, or a meter event with some metadata, fits into one."""

# Far from each other: no flipped bit or two make one of them another.
FREE: Final = 0
WHOLE: Final = 0x55
PART: Final = 0xAA

_MAGIC: Final = b"PAJ\n"
_HEAD: Final = struct.Struct("<4sHHIQI")
_ROUTES: Final = 64  # where they begin
_ROUTE: Final = struct.Struct("<HI")  # length, checksum
ROUTES: Final = STEP
"""Sets of lanes that one journal knows: an agent has one for each kind of event."""

RECORD: Final = struct.Struct("<IQ179pB")
assert RECORD.size == SLOT
ROOM: Final = 178
"""Bytes of an event that fit into one slot."""
STAMP: Final = struct.Struct("<Q")
STAMP_AT: Final = 4
STATE_AT: Final = SLOT - 1
PART_HEAD: Final = struct.Struct("<QHH")
"""Of a part: the stamp of the event's first part, which part it is, how many there are."""
PART_ROOM: Final = ROOM - PART_HEAD.size


def checksum(payload: bytes, stamp: int, state: int) -> int:
    said = zlib.adler32(payload, stamp & 0xFFFFFFFF)
    return said if state == WHOLE else said ^ 0xFFFFFFFF  # so that none is taken for the other


class Head(NamedTuple):
    """What a journal says of itself. *sound*: whether it is as it was written."""

    format: int
    slots: int
    made_at: float
    sound: bool


def write_head(buffer: memoryview, slots: int, made_at: float) -> None:
    packed = _HEAD.pack(_MAGIC, FORMAT, SLOT, slots, int(made_at * 1000), 0)[:-4]
    buffer[: _HEAD.size] = packed + zlib.crc32(packed).to_bytes(4, "little")


def read_head(buffer: memoryview) -> Head | None:
    """The head; None where none was ever written: its maker died over it, and nothing is in it."""
    if not any(buffer[: _HEAD.size]):
        return None
    if len(buffer) < _HEAD.size:
        return Head(FORMAT, 0, 0.0, sound=False)
    magic, form, _, slots, made_ms, checksum = _HEAD.unpack_from(buffer)
    sound = magic == _MAGIC and zlib.crc32(buffer[: _HEAD.size - 4]) == checksum
    return Head(form if sound else FORMAT, slots, made_ms / 1000, sound)


def write_routes(buffer: memoryview, order: Iterable[tuple[str, ...]]) -> bool:
    """Keep the lanes of all routes in the head, by their numbers. False: there is no room for them.

    What is written, and where, depends on *order* alone; so two calls at once, one with more routes than the
    other, do each other no harm.
    """
    at = _ROUTES
    for number, lanes in enumerate(order):
        said = json.dumps(lanes).encode()
        end = at + _ROUTE.size + len(said)
        if number >= ROUTES or end + _ROUTE.size > HEAD:
            return False
        buffer[at + _ROUTE.size : end] = said
        failpoint.reach("route half written")
        _ROUTE.pack_into(buffer, at, len(said), zlib.crc32(said, number))
        failpoint.reach("route written")
        at = end
    return True


def routes(buffer: memoryview) -> list[tuple[str, ...] | None]:
    """The lanes by the number of their route; None for those that cannot be read."""
    return list(_routes(buffer))


def _routes(buffer: memoryview) -> Iterator[tuple[str, ...] | None]:
    at = _ROUTES
    for number in range(ROUTES):
        length, said_sum = _ROUTE.unpack_from(buffer, at)
        end = at + _ROUTE.size + length
        if length == 0 or end + _ROUTE.size > HEAD:
            return
        said = bytes(buffer[at + _ROUTE.size : end])
        # With the number: where a length is damaged, the next route must not be taken for this one.
        yield tuple(json.loads(said)) if zlib.crc32(said, number) == said_sum else None
        at = end


class Slot(NamedTuple):
    """A slot that is taken: its offset, the number of what is in it, and `WHOLE` or `PART` as *state*."""

    at: int
    number: int
    route: int
    payload: bytes
    state: int


def read_slot(buffer: memoryview, at: int) -> Slot:
    """The taken slot at the offset *at*. Raises `SpoolCorrupt` where it is not what was written."""
    said, stamp, payload, state = RECORD.unpack_from(buffer, at)
    if state not in (WHOLE, PART) or checksum(payload, stamp, state) != said:
        raise SpoolCorrupt(f"the slot at {at} of a journal is not what was written")
    return Slot(at, stamp // ROUTES, stamp % ROUTES, payload, state)
