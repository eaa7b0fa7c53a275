"""Heavy modules are loaded late: when they are first needed, and never while the process forks.

Decision. The import of this package is in the way of its host's start, so what is not needed to take events in
(the HTTP client, the log's renderer, the event loop) is imported inside the functions that need it, mostly in
the agent's own threads. Given up: an import statement at the top of the file, for those few.

A child that is forked while a thread of its parent imports something has that module half made, its lock held
by a thread that the child does not have: whoever imports it there, the host included, waits for ever. So a
fork waits until what is being loaded `here` is loaded.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

_PATIENCE: Final = 10.0  # seconds that a fork waits: far longer than any import, and not for ever

_loading = threading.RLock()  # whom a signal handler interrupts may be loading, or forking, itself
_registered: list[int] = []


@contextmanager
def here() -> Iterator[None]:
    """Import within this. One thread does at a time, and none while the process forks."""
    mind_forks()
    with _loading:
        yield


def mind_forks() -> None:
    """From now on let forks wait. Whoever will load something in a thread says so before it starts one.

    A fork that has begun does not ask those that come to be asked meanwhile.
    """
    if not _registered:  # once a process and its children, and not at import: importing starts nothing
        _registered.append(os.getpid())
        os.register_at_fork(before=_hold, after_in_parent=_go_on, after_in_child=_renew)


def _hold() -> None:
    _loading.acquire(timeout=_PATIENCE)


def _go_on() -> None:
    with suppress(RuntimeError):  # it was not got in time
        _loading.release()


def _renew() -> None:
    global _loading  # noqa: PLW0603  (where it was not got in time, its holder does not exist in this process)
    _loading = threading.RLock()
