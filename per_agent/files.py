"""Files that are ours: opened as themselves or not at all, made for their owner only, waited for never.

The data folder is meant to be one user's alone. Where others can write to it, a symbolic link, a second name, a
pipe or a device in the place of a file of ours would have us overwrite, or wait for, something else. Decision:
a link is followed only where this user or root made it, which is how an administrator moves a file to another
disk; inside a spool, where nobody has a reason to make one, no link is. What is given up: a defence against
somebody who exchanges a file between the look and the use, in a folder that is theirs to change.
"""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

_NO_FILE = errno.EINVAL  # for what is there and is no file of ours: no subclass of OSError means it


def make_folder(folder: Path) -> None:
    """Make *folder* for its owner only, where it is not there, and what is missing above it for its owner to change."""
    with suppress(FileExistsError):
        for missing in reversed([each for each in folder.parents if not each.exists()]):
            missing.mkdir(
                mode=0o755, exist_ok=True
            )  # whatever the umask: others must not rename what is in it
        folder.mkdir(mode=0o700)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is not a folder", str(folder))


def strange_link(path: Path) -> str | None:
    """What is wrong with *path* where it is a link that another user made, in words; else None."""
    try:
        found = path.lstat()
    except OSError:
        return None
    if stat.S_ISLNK(found.st_mode) and found.st_uid not in (os.geteuid(), 0):
        return f"is a symbolic link that another user (uid {found.st_uid}) made: remove it"
    return None


def not_ours(path: Path) -> str | None:
    """What keeps *path* from being a file that we made under this one name, in words; None: nothing, or no file."""
    try:
        found = path.lstat()
    except OSError:
        return None
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link, and no file of per_agent's: remove it"
    return not_a_file(found) or (
        "has another name elsewhere (a hard link), and so is not ours alone: remove it"
        if found.st_nlink > 1
        else None
    )


def not_a_file(found: os.stat_result) -> str | None:
    """What is wrong with what was *found* where it is a pipe, a device or the like, in words; else None."""
    return None if stat.S_ISREG(found.st_mode) else "is not a regular file: remove it"


def read(path: Path, limit: int) -> bytes:
    """The content of a file. Raises `OSError` where it is longer than *limit* bytes, or no regular file."""
    problem = strange_link(path)
    if problem is not None:
        raise OSError(_NO_FILE, problem, str(path))
    # Without O_NONBLOCK, opening a pipe waits until somebody writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with os.fdopen(descriptor, "rb") as file:
        problem = not_a_file(os.fstat(descriptor))
        content = b"" if problem else file.read(limit + 1)
    if len(content) > limit:
        problem = f"is longer than {limit} bytes"
    if problem is not None:
        raise OSError(_NO_FILE, problem, str(path))
    return content


def create(path: Path) -> int:
    """A new file, for its owner only, open for writing. Raises `FileExistsError` where anything has that name."""
    # O_EXCL takes no link for a file that is yet to be made.
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
