"""The ballast: room on the disk that is kept for taking events out of the spool, when there is none for new ones.

Decision. On a full disk not even a delete can be committed: SQLite's write-ahead log has to grow for it. A
spool would then go on delivering what it cannot settle, and a restarted process could not even open it. So
each spool keeps a file of really allocated blocks beside its database. It is given up when a change that adds
nothing finds no room; from then until it could be made again, nothing new is stored. It is made of twice its
size and cut, so that there is room beside it, whatever quotas say, and a disk that is nearly full does not go
back and forth. What is given up: that much disk for each spool. Where a file system cannot allocate, or
compresses, there is no ballast, or less than it seems.
"""

import errno
import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Final

from per_agent import failpoint

FILE: Final = (
    "ballast.cache.db"  # diskcache deletes foreign files when it repairs, but those that bear this name
)

# The write-ahead log may hold 4 MiB (1000 pages) that are not in the database yet, and moving them there is
# what gives the log's room back; the rest is for one large commit.
_SIZE: Final = 6 * 2**20
_SHARE: Final = 8  # of a small disk, no more than one part in so many
_BLOCK: Final = 512  # bytes; the unit of st_blocks

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def says_full(error: BaseException) -> bool:
    """Whether *error* means that the disk has no room."""
    if isinstance(error, OSError):
        return error.errno in _NO_ROOM
    # The second: there is no room for the index of the log, which is made when the database is opened.
    return _code(error) & 0xFF == sqlite3.SQLITE_FULL or _code(error) == sqlite3.SQLITE_IOERR_SHMSIZE


def _code(error: BaseException) -> int:
    return getattr(error, "sqlite_errorcode", None) or 0  # absent where diskcache raised it, not SQLite


class Ballast:
    """The ballast of the spool in *folder*, which the caller holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / FILE
        self.size = size_on(folder)

    @property
    def there(self) -> bool:
        """Whether it takes its place on the disk now."""
        try:
            found = self._file.lstat()
        except OSError:
            return False
        return found.st_size == self.size and found.st_blocks * _BLOCK >= self.size

    @property
    def words(self) -> str:
        """What a full disk means, and what to do, for people."""
        return (
            f"the disk is full: new events wait in memory until {2 * self.size / 2**20:.3g} MiB are free"
            f" in {self.folder.parent.parent}"
        )

    @property
    def wanting(self) -> bool:
        """Whether the disk looks too full for `make`, from outside."""
        return free_bytes(self.folder) < (self.size if self.there else 2 * self.size)

    def make(self) -> bool:
        """Have it, where there is room for it and for as much again. False: the disk is full.

        True also where the file system has no such thing: then nothing can be kept.
        """
        if self.there:
            return self._room_beside()
        self.release()
        if _allocated(self._file, 2 * self.size, self.size):
            return True
        self.release()
        return False

    def lacked(self, error: BaseException) -> bool:
        """Whether it was for want of room that the disk answered *error*."""
        if says_full(error):
            return True
        if _code(error) != sqlite3.SQLITE_IOERR_WRITE:
            return False
        # SQLite tells a quota that is used up as an I/O error.
        return not self._room_beside()

    def _room_beside(self) -> bool:
        """Whether there is room for as much again."""
        probe = self._file.with_name(f"probe.{FILE}")
        try:
            return _allocated(probe, self.size, 0)
        finally:
            with suppress(OSError):
                probe.unlink()

    def release(self) -> bool:
        """Give its room up. Whether there was any."""
        with suppress(OSError):
            self._file.unlink()
            return True
        return False


def _allocated(file: Path, size: int, kept: int) -> bool:
    """Make *file* of *size* bytes that are really there, and cut it to *kept*. False where there is no room."""
    try:
        opened = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(opened, 0, size)
            failpoint.reach("ballast allocated")
            os.ftruncate(opened, kept)
            failpoint.reach("ballast cut")
        finally:
            os.close(opened)
    except OSError as error:
        return error.errno not in _NO_ROOM
    return True


def free_bytes(folder: Path) -> int:
    """How many bytes are free on the disk of *folder*; very many where that cannot be told."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return 2**62
    return disk.f_bavail * disk.f_frsize


def size_on(folder: Path) -> int:
    """How many bytes a ballast in *folder* has."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return _SIZE
    share = disk.f_blocks * disk.f_frsize // _SHARE
    return max(disk.f_frsize, min(_SIZE, share - share % disk.f_frsize))
