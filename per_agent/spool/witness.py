"""The witness: what the last commit left, written beside the database, so that a database that lost commits is told.

SQLite opens a database whose log was deleted, or that was cut to nothing, without a word. The witness lies in
the file of the spool's lock, and is written after each commit that changed the books, without an fsync: it is
never ahead of what is safely on the disk, and so a database that is behind it has lost something.
"""

import zlib

import msgspec

from per_agent.books import Books
from per_agent.spool.folder import Claim


class Witness(msgspec.Struct, frozen=True, array_like=True):
    """The last sequence number and the books of each lane."""

    seq: int
    books: dict[str, Books]


_pack = msgspec.msgpack.Encoder().encode
_witness_of = msgspec.msgpack.Decoder(Witness).decode


def write(claim: Claim, seq: int, books: dict[str, Books]) -> None:
    """Note what a commit left. Raises `OSError`."""
    said = _pack(Witness(seq, books))
    claim.note(len(said).to_bytes(4, "big") + zlib.crc32(said).to_bytes(4, "big") + said)


def read(claim: Claim) -> Witness | None:
    """What the last commit left; None where nobody noted it, or it is damaged itself."""
    noted = claim.noted()
    said = noted[8 : 8 + int.from_bytes(noted[:4], "big")]
    if not said or zlib.crc32(said) != int.from_bytes(noted[4:8], "big"):
        return None
    try:
        return _witness_of(said)
    except msgspec.MsgspecError:
        return None
