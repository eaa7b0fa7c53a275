"""Where spools live, and who holds which: one folder for each, one file lock in it.

::

    <data_dir>/spools/<id>/owner.lock   held with flock by the process that uses the spool
    <data_dir>/spools/<id>/cache.db     the database

Decision. Each process has a spool of its own, because SQLite with several writers makes callers wait for
each other and does not survive a fork. The kernel drops the lock of a process however it died, so a spool
without a holder is abandoned, and whoever finds it first takes it: the next agent that starts takes one as
its own instead of making another (a program that runs again and again keeps one folder), and running
agents take the others, deliver what is in them, and absorb their books. flock is refused on some network
file systems; so is SQLite's write-ahead log.
"""

import fcntl
import os
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from per_agent import failpoint, files
from per_agent.errors import SpoolError
from per_agent.spool import forks, trust
from per_agent.spool.trust import LOCK

_OPEN: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_GOING: Final = ".going"  # a folder's ending while it is being removed

_DAMAGED: Final = ".damaged"  # and when damaged files were set aside in it; see `salvage`


class Claim:
    """A spool's folder, held. The lock lasts until `release`, or until the process ends; a fork does not inherit it.

    `fresh`: whether the folder was made with it.
    """

    __slots__ = ("_fd", "folder", "fresh", "id")

    def __init__(self, folder: Path, fd: int) -> None:
        self.folder = folder
        self.id = folder.name
        self.fresh = False
        self._fd = fd

    def release(self) -> None:
        """Let go of the spool, for good."""
        forks.release_lock(self._fd)
        self._fd = -1

    def note(self, words: bytes) -> None:
        """Write *words* into the file of the lock, without an fsync."""
        os.pwrite(self._fd, words, 0)
        failpoint.reach("commit noted")

    def noted(self) -> bytes:
        """What the file of the lock holds."""
        return os.pread(self._fd, os.fstat(self._fd).st_size, 0)

    def remove(self) -> None:
        """Delete the spool's folder and let go of it. It disappears at once or not at all."""
        going = self.folder.with_name(self.folder.name + _GOING)
        self.folder.rename(going)
        failpoint.reach("spool renamed")
        shutil.rmtree(going, ignore_errors=True)
        failpoint.reach("spool removed")
        self.release()


def spools(data_dir: Path) -> list[Path]:
    """The folders of all spools under *data_dir*, oldest first."""
    return [path for path in _folders(data_dir) if path.suffix not in (_GOING, _DAMAGED)]


def sweep(data_dir: Path) -> None:
    """Finish the removal of spools whose removers died over it."""
    for path in _folders(data_dir):
        if path.suffix == _GOING:
            shutil.rmtree(path, ignore_errors=True)
            failpoint.reach("spool swept")


def _folders(data_dir: Path) -> list[Path]:
    try:
        found = (data_dir / "spools").iterdir()
        return sorted(path for path in found if path.is_dir() and not path.is_symlink())
    except (FileNotFoundError, NotADirectoryError):
        return []


def claim(folder: Path) -> Claim | None:
    """Take the spool in *folder*, or None when somebody holds it, it is gone, or it is not ours to use."""
    if trust.problem(folder) is not None:
        return None
    with forks.section():
        try:
            fd = os.open(folder / LOCK, _OPEN, 0o600)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.fstat(fd)
            is_ours = stat.S_ISREG(found.st_mode) and found.st_nlink == 1
            # Between open and flock the folder may have been removed; then the lock is on a file without a name.
            if is_ours and (folder / LOCK).stat().st_ino == found.st_ino:
                forks.own_lock(fd)
                failpoint.reach("spool locked")
                return Claim(folder, fd)
        except OSError:
            pass
        os.close(fd)
        return None


def held(folder: Path) -> bool:
    """Whether some process holds the spool in *folder*. Takes the lock for an instant to find out."""
    found = claim(folder)
    if found is None:
        return folder.exists()
    found.release()
    return False


def create(data_dir: Path) -> Claim:
    """Make a new spool and take it."""
    parent = data_dir / "spools"
    while True:
        folder = parent / f"{time.time_ns() // 1000:014x}-{os.urandom(4).hex()}"
        folder.mkdir(mode=0o700)
        failpoint.reach("spool made")
        taken = claim(folder)
        if taken is not None:
            taken.fresh = True
            _sync_folder(parent)
            return taken
        if not os.access(folder, os.W_OK) or _cannot_lock(folder):
            raise SpoolError(f"{folder}: files cannot be locked here; is it on a network file system?")


def _cannot_lock(folder: Path) -> bool:
    """Whether the file system has no locks, which is not the same as that somebody else was faster."""
    with (folder / LOCK).open("a", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
    return False


def prepare(data_dir: Path) -> None:
    """Make the data folder and its spools folder, for this user only. Raises `OSError` where they cannot be used."""
    files.make_folder(data_dir)
    parent = data_dir / "spools"
    trust.check_link(parent)
    with suppress(FileExistsError):
        parent.mkdir(mode=0o700)
        failpoint.reach("folders made")
        _sync_folder(data_dir)
    trust.tell_of_others(data_dir)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
        failpoint.reach("folder synced")
    finally:
        os.close(fd)
