"""A journal's file: made with all its space, locked, and mapped."""

import fcntl
import mmap
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from per_agent import failpoint
from per_agent.journal import layout

FOLDER: Final = "journals"
SUFFIX: Final = ".journal"


def create(path: Path, size: int) -> tuple[mmap.mmap, int]:
    """A journal without events at *path*, locked for as long as it is mapped, and its inode."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        # The mapping holds the file open, and so the lock is its own: it goes with it.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        failpoint.reach("journal file made")
        os.posix_fallocate(fd, 0, size)
        failpoint.reach("journal sized")
        mapped = mmap.mmap(fd, size)
        with memoryview(mapped) as buffer:
            layout.write_head(buffer, (size - layout.HEAD) // layout.SLOT, time.time())
        failpoint.reach("journal made")
        # Raises where it was taken for an abandoned one before it was locked.
        return mapped, path.stat().st_ino
    except BlockingIOError:
        raise  # it was taken so just now
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise
    finally:
        os.close(fd)
