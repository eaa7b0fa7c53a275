"""A small disk of its own for a test: a tmpfs that can really be full, and is taken down in all cases.

Only root may mount. With PER_AGENT_DISK_TEST=required, a machine on which that cannot be is a failure and no
reason to skip.
"""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

FILLER = "filler"


@contextmanager
def small_disk(place: Path, mib: int) -> Iterator[Path]:
    """A disk of *mib* MiB at *place*, for as long as the block lasts."""
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "tmpfs", place],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        assert os.environ.get("PER_AGENT_DISK_TEST") != "required", done.stderr
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        if subprocess.run(["umount", place], capture_output=True, check=False).returncode:
            subprocess.run(
                ["umount", "--lazy", place], check=True
            )  # something of a failed test is still open


def fill_up(disk: Path, *, leave: int = 0) -> None:
    """Take all the room on *disk*, to the last block, but *leave* bytes. More at every call."""
    file = os.open(disk / FILLER, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        size = os.fstat(file).st_size
        step = 2**20
        while step >= 4096:
            try:
                os.posix_fallocate(file, size, step)
                size += step
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                step //= 2
        os.ftruncate(file, size - leave)
    finally:
        os.close(file)


def make_room(disk: Path) -> None:
    """Give the room back that `fill_up` took."""
    with suppress(FileNotFoundError):
        (disk / FILLER).unlink()


def free_bytes(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize
