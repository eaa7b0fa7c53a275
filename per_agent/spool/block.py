"""Blocks: some hundreds of encoded events in one entry of the spool, with a checksum.

SQLite has no page checksums, so a flipped byte would come back as an event that nobody recorded. Each
block therefore carries a CRC-32 of all that follows it.

Decision. The events of a block resemble each other, so they lie there compressed: by the fastest level, which
takes 0.2 us of an event, outside the interpreter's lock, and leaves 10 to 30 bytes of 80. What is not written
need not be synced, which is where storing spends its time. It is done where it gains, and to a bounded length:
so a block that was planted cannot make its reader fill the memory, and what is longer lies there as it is.
"""

import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from per_agent.errors import SpoolCorrupt

_HEAD: Final = struct.Struct(
    ">2sBIHQ"
)  # magic, format, checksum, number of events, made at (epoch milliseconds)
_SUMMED_FROM: Final = 7  # what the checksum covers: all that follows it
_MAGIC: Final = b"PA"
_PLAIN: Final = 1  # format: the events as they are
_COMPRESSED: Final = 2  # the length of that, and then that, compressed
_LENGTH: Final = struct.Struct(">I")
_WORTH_IT: Final = 256  # bytes; of less there is nothing to be gained
_LONGEST: Final = 4 * 2**20  # bytes that are compressed at most, and the most that reading a block expands to
HEAD_BYTES: Final = _HEAD.size
MAX_EVENTS: Final = 0xFFFF

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[bytes]).decode


class BlockId(NamedTuple):
    """A block's place in its lane: `seq` orders by acceptance; `part` tells apart what was parked of it."""

    seq: int
    part: int = 0

    def __str__(self) -> str:
        return f"{self.seq:012x}-{self.part:012x}"

    @classmethod
    def parse(cls, text: str) -> "BlockId":
        """What *text* says as `str` writes it. Raises `ValueError` for any other."""
        seq, part = text.split("-")
        parsed = cls(int(seq, 16), int(part, 16))
        if str(parsed) != text:
            raise ValueError(text)
        return parsed


class Block:
    """Events of one lane as they were read or written, and which of them are still to be delivered.

    `settled` has bit *i* set when event *i* has left the lane on the disk. Only the spooler changes it.
    """

    __slots__ = ("count", "events", "id", "lane", "made_at", "settled")

    def __init__(
        self, lane: str, id: BlockId, events: Sequence[bytes], made_at: float, settled: int = 0
    ) -> None:
        self.lane = lane
        self.id = id
        self.events = events
        self.count = len(events)
        self.made_at = made_at
        self.settled = settled

    def pending(self) -> Iterable[int]:
        """The positions of the events that are not settled."""
        if not self.settled:
            return range(self.count)
        return (at for at in range(self.count) if not self.settled >> at & 1)


def pack(events: Sequence[bytes], made_at: float) -> bytes:
    """The bytes of a block of 1 to `MAX_EVENTS` encoded *events*; *made_at* in epoch seconds."""
    form, body = _PLAIN, _encode(events)
    if _WORTH_IT <= len(body) <= _LONGEST:
        compressed = _LENGTH.pack(len(body)) + zlib.compress(body, zlib.Z_BEST_SPEED)
        if len(compressed) < len(body):
            form, body = _COMPRESSED, compressed
    head = _HEAD.pack(_MAGIC, form, 0, len(events), int(made_at * 1000))
    checksum = zlib.crc32(body, zlib.crc32(head[_SUMMED_FROM:]))
    return head[:3] + checksum.to_bytes(4, "big") + head[_SUMMED_FROM:] + body


def unpack(packed: bytes) -> tuple[list[bytes], float]:
    """The events of a block and when it was made. Raises `SpoolCorrupt` when they are not what was packed."""
    count, made_at = head(packed)
    (checksum,) = struct.unpack_from(">I", packed, 3)
    if zlib.crc32(memoryview(packed)[_SUMMED_FROM:]) != checksum:
        raise SpoolCorrupt("a block's checksum is wrong")
    body = memoryview(packed)[HEAD_BYTES:]
    try:
        events = _decode(body if packed[2] == _PLAIN else _expanded(body))
    except msgspec.DecodeError as error:
        raise SpoolCorrupt(f"a block holds no events: {error}") from error
    if len(events) != count:
        raise SpoolCorrupt(f"a block says {count} events and holds {len(events)}")
    return events, made_at


def _expanded(body: memoryview) -> bytes:
    """What was compressed to *body*; at most `_LONGEST` bytes, whatever it says."""
    if len(body) < _LENGTH.size:
        raise SpoolCorrupt("a block is shorter than its head")
    (length,) = _LENGTH.unpack_from(body)
    if not 0 < length <= _LONGEST:
        raise SpoolCorrupt(f"a block says that it expands to {length} bytes, and {_LONGEST} is the most")
    reader = zlib.decompressobj()
    try:
        expanded = reader.decompress(body[_LENGTH.size :], length + 1)
    except zlib.error as error:
        raise SpoolCorrupt(f"a block cannot be expanded: {error}") from error
    # Only with its end was the sum of what it expands to compared, too.
    if len(expanded) != length or not reader.eof or reader.unused_data:
        raise SpoolCorrupt("a block does not expand to what it says")
    return expanded


def head(packed: bytes) -> tuple[int, float]:
    """How many events a block says it holds, and when it was made (epoch seconds), from its first bytes."""
    if len(packed) < HEAD_BYTES:
        raise SpoolCorrupt("a block is shorter than its head")
    magic, form, _, count, made_at = _HEAD.unpack_from(packed)
    if magic != _MAGIC:
        raise SpoolCorrupt("a block does not begin like one")
    if form not in (_PLAIN, _COMPRESSED):
        raise SpoolCorrupt(f"a block has format {form}, and this version knows {_PLAIN} and {_COMPRESSED}")
    return count, made_at / 1000


def mask_at(positions: Sequence[int]) -> int:
    """The mask with the bits at *positions*, in whatever order, and however often each."""
    if not positions:
        return 0
    first = positions[0]
    if list(positions) == list(
        range(first, first + len(positions))
    ):  # as nearly always: and a bit costs much more
        return (1 << len(positions)) - 1 << first
    mask = 0
    for at in positions:
        mask |= 1 << at
    return mask


def mask_bytes(mask: int) -> bytes:
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


def mask_of(stored: bytes) -> int:
    return int.from_bytes(stored, "little")
