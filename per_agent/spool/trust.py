"""Which folders are spools of ours, and what is said of a data folder that others can change.

Decision. A data folder that an administrator made for several users, or with a mode that lets others in, goes on
working: it is warned about, and what is in it is for its owner only. But a folder that another user planted
there is not taken for a spool: events would be stored where they can read and change them, and events of theirs
would be billed. Nor is a folder that holds something else: spools are removed when they are drained.
"""

import os
import stat
from pathlib import Path
from typing import Final

from per_agent import files
from per_agent.log import Log
from per_agent.spool.disk import FILE

LOCK: Final = "owner.lock"
_OTHERS_WRITE: Final = 0o022
_told: set[tuple[Path, str]] = set()


def problem(folder: Path) -> str | None:
    """What keeps *folder* from being a spool that this user may use, in words; None: nothing, or it is gone."""
    try:
        found = folder.lstat()
        owner = folder.parent.parent.stat().st_uid
    except OSError:
        return None
    if not stat.S_ISDIR(found.st_mode):
        return "is not a folder"
    # Where a file system keeps no owners, all is somebody else's; so whoever owns the data folder is trusted.
    if found.st_uid not in (os.geteuid(), owner):
        return f"belongs to another user (uid {found.st_uid})"
    if found.st_uid != os.geteuid() and found.st_mode & _OTHERS_WRITE:
        return "can be changed by other users"
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError:
        return "cannot be read"
    return None if not names or {LOCK, FILE} & names else "holds something else"


def tell(folder: Path, reason: str) -> None:
    """Say once that *folder* is left alone, and why."""
    if _is_new(folder, reason):
        Log().info("a folder among the spools is left alone", folder=str(folder), reason=reason)


def tell_of_others(data_dir: Path) -> None:
    """Say once, of the data folder and of that of the spools, that others can delete or replace what is in it."""
    for folder in (data_dir, data_dir / "spools"):
        found = folder.stat()
        if found.st_mode & _OTHERS_WRITE:
            reason, remedy = f"its mode is {stat.S_IMODE(found.st_mode):o}", f"chmod go-w {folder}"
        elif found.st_uid not in (os.geteuid(), 0):
            reason, remedy = (
                f"it belongs to uid {found.st_uid}",
                f"chown it, or name another data folder than {data_dir}",
            )
        else:
            continue
        if _is_new(folder, reason):
            Log().warning(
                "others can delete or replace what is in the data folder",
                folder=str(folder), reason=reason, remedy=remedy,
            )  # fmt: skip


def check_link(parent: Path) -> None:
    """Raise `OSError` where the folder of all spools is a link that another user made."""
    reason = files.strange_link(parent)
    if reason is not None:
        raise PermissionError(1, reason, str(parent))


def _is_new(folder: Path, reason: str) -> bool:
    if (folder, reason) in _told:
        return False
    _told.add((folder, reason))
    return True
