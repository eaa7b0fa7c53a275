"""A write-ahead log of SQLite as it lies there: what was committed in it, also behind a damaged place.

SQLite takes a frame that does not fit its checksum for the end of the log, as it is after a power cut, and
forgets all that follows, without a word. Here each frame is judged by itself. What follows the last commit
that is whole was never promised to anybody, and does not count.
"""

import struct
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

PAGE: Final = 4096  # bytes; SQLite's default, and so that of every spool
_HEADER: Final = struct.Struct(">8I")  # magic, version, page size, count of checkpoints, salts, checksum
_FRAME: Final = struct.Struct(">6I")  # page, pages of the database after a commit, salts, checksum
_SUMMED: Final = 8  # bytes of a frame's head that its checksum covers, and then the page
_BIG_ENDIAN: Final = 0x377F0683  # the magic of a log whose checksums are of big-endian words
_SIZE: Final = _FRAME.size + PAGE

_Sum = tuple[int, int]


class Log(NamedTuple):
    """What counts of a log.

    Attributes:
        pages: where the newest content of each page begins.
        size: how many pages the database has; None without a commit.
        damage: what is wrong with it, in words; None where SQLite reads the same.
    """

    content: bytes
    pages: dict[int, int]
    size: int | None
    damage: str | None


class _Frame(NamedTuple):
    page: int
    commit: int
    at: int
    sound: bool
    ours: bool  # whether it bears the salts of this use of the file: else SQLite stops here, however sound it is


def read(content: bytes) -> Log:
    """What counts of a log's *content*."""
    frames = list(_frames(content))
    last = max((n for n, frame in enumerate(frames) if frame.sound and frame.commit), default=-1)
    counted = frames[: last + 1]
    if not counted:
        return Log(content, {}, None, None)
    pages = {frame.page: frame.at for frame in counted if 0 < frame.page <= 2**31}
    bad = sum(not (frame.sound and frame.ours) for frame in counted)
    damage = f"{bad} pages of its log are damaged" if bad else _header_damage(content)
    return Log(content, pages, counted[-1].commit, damage)


def _header_damage(content: bytes) -> str | None:
    _, version, size, _, *salts, one, two = _HEADER.unpack_from(content)
    found = _checksum(content[: _HEADER.size - 8], (0, 0), _order(content)) == (one, two)
    sound = found and version == 3_007_000 and size == PAGE and tuple(salts) == _salts(content)
    return None if sound else "the head of its log is damaged"


def _frames(content: bytes) -> Iterator[_Frame]:
    if len(content) < _HEADER.size + _SIZE:
        return
    order, salts = _order(content), _salts(content)
    seeds: list[_Sum] = [_HEADER.unpack_from(content)[-2:], _checksum(content[:24], (0, 0), order)]
    strangers = 0
    for at in range(_HEADER.size, len(content) - _SIZE + 1, _SIZE):
        page, commit, *salt, one, two = _FRAME.unpack_from(content, at)
        summed = content[at : at + _SUMMED] + content[at + _FRAME.size : at + _SIZE]
        sums = [_checksum(summed, seed, order) for seed in dict.fromkeys(seeds)]
        sound = (one, two) in sums
        # By their salts alone: a frame of an earlier use is sound after another of that use.
        strangers = 0 if tuple(salt) == salts else strangers + 1
        if strangers > 1:
            return  # of an earlier use of the file
        if not sound and not strangers:
            page, commit = _mended(summed, seeds[0], (one, two), order) or (page, commit)
        yield _Frame(page, commit, at + _FRAME.size, sound, tuple(salt) == salts)
        seeds = [(one, two), *sums]


def _mended(summed: bytes, seed: _Sum, wanted: _Sum, order: str) -> tuple[int, int] | None:
    """The page number and commit mark of a frame, where a flipped bit in them is all that is wrong."""
    number = int.from_bytes(summed[:_SUMMED], "big")
    for bit in range(8 * _SUMMED):
        head = (number ^ 1 << bit).to_bytes(_SUMMED, "big")
        if _checksum(head + summed[_SUMMED:], seed, order) == wanted:
            page, commit = struct.unpack(">2I", head)
            return page, commit
    return None


def _order(content: bytes) -> str:
    return ">" if int.from_bytes(content[:4], "big") == _BIG_ENDIAN else "<"


def _salts(content: bytes) -> _Sum:
    """The salts of this use of the file: what most of its head and its first frames say."""
    said = [_HEADER.unpack_from(content)[4:6]]
    said += [
        _FRAME.unpack_from(content, at)[2:4]
        for at in range(_HEADER.size, min(len(content) - _SIZE + 1, _HEADER.size + 2 * _SIZE), _SIZE)
    ]
    ((salts, _),) = Counter(said).most_common(1)
    return salts


def _checksum(content: bytes, seed: _Sum, order: str) -> _Sum:
    one, two = seed
    words = struct.unpack(f"{order}{len(content) // 4}I", content)
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return one, two
