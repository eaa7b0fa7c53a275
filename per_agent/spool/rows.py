"""What a row of the spool must look like: its key, and a value that is what the key says. See `store` for the keys."""

import re
from typing import Final

import msgspec

from per_agent.books import Books
from per_agent.errors import SpoolCorrupt
from per_agent.journal import Stamps
from per_agent.spool import block as blocks
from per_agent.spool.records import DeadLetter, Parking

_ID: Final = r"[0-9a-f]{12,}-[0-9a-f]{12,}"
_LANE: Final = r"l/[^/\x7f]+"
_BLOCK: Final = re.compile(rf"{_LANE}/(b/{_ID}|p/[^/]+/{_ID})")
_MASK: Final = re.compile(rf"{_LANE}/d/{_ID}")
_LOST: Final = re.compile(rf"{_LANE}/q/{_ID}")
_LETTER: Final = re.compile(rf"{_LANE}/x/[0-9a-f]{{12,}}")
_BOOKS: Final = re.compile(rf"{_LANE}/n")
_PARKING: Final = re.compile(rf"{_LANE}/r/[^/]+")
_JOURNAL: Final = re.compile(r"j/[0-9a-f-]+")
_SEQ: Final = "m/seq"
_OTHER: Final = re.compile(rf"{_LANE}/s|a/[0-9a-f-]+|u/[0-9a-f-]+/(?:[0-9a-f]+|missing)")


def fits(key: str, value: bytes) -> bool:
    """Whether *value* may be what was stored under *key*."""
    try:
        if _BLOCK.fullmatch(key):
            blocks.unpack(value)
        elif _LETTER.fullmatch(key):
            msgspec.msgpack.decode(value, type=DeadLetter)
        elif _PARKING.fullmatch(key):
            msgspec.msgpack.decode(value, type=Parking)
        elif _BOOKS.fullmatch(key):
            return msgspec.msgpack.decode(value, type=Books).balanced
        elif key == _SEQ:
            return len(value) == 8 and int.from_bytes(value, "big") < 2**62
        elif _JOURNAL.fullmatch(key):
            Stamps.decode(value)
        elif _LOST.fullmatch(key):
            return len(value) >= 4
        else:
            return _MASK.fullmatch(key) is not None or _OTHER.fullmatch(key) is not None
    except (SpoolCorrupt, msgspec.MsgspecError):
        return False
    return True
