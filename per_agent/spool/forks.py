"""No SQLite call is under way, and no connection open, while this process forks; its locks stay its own.

SQLite keeps mutexes and a list of the locks it holds in the process's own memory. A child inherits both: a
mutex that another thread held is locked for ever, and a file that the parent had open counts as locked by
the child. So all use of SQLite by the spool happens in a `section`; a fork waits until none is under way
(that is one commit at most), and closes what is open. Both sides open anew when they next need to.
"""

import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

_LONGEST_WAIT: Final = 5.0  # seconds; a fork does not wait longer for a disk that does not answer


class Closable(Protocol):
    """Something with a connection."""

    def disconnect(self) -> None:
        """Close the connection. The next section opens another."""
        ...


class _Gate:
    """Many may be inside, or forks under way: threads may fork at once, and the first to be done lets nobody in."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._forking = 0
        self.connections: weakref.WeakSet[Closable] = weakref.WeakSet()
        self.locks: set[int] = set()

    def enter(self) -> None:
        with self._changed:
            while self._forking:
                self._changed.wait()
            self._inside += 1

    def leave(self) -> None:
        with self._changed:
            self._inside -= 1
            if self._forking:
                self._changed.notify_all()

    def before_fork(self) -> None:
        deadline = time.monotonic() + _LONGEST_WAIT
        with self._changed:
            self._forking += 1
            while self._inside and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            if not self._inside:
                for each in list(self.connections):
                    each.disconnect()

    def after_fork_in_parent(self) -> None:
        with self._changed:
            # Not below nothing: where a signal handler raised before it was counted, the fork goes on all the same.
            self._forking = max(0, self._forking - 1)
            self._changed.notify_all()

    def after_fork_in_child(self) -> None:
        for descriptor in self.locks:
            # Only closed, never unlocked: the lock belongs to the parent's descriptor too.
            os.close(descriptor)
        self.locks.clear()
        self._changed = threading.Condition()  # the old one may be held by a thread that does not exist here
        self._inside = 0
        self._forking = 0
        self.connections = weakref.WeakSet()


_gate = _Gate()
_registered: list[int] = []


@contextmanager
def section() -> Iterator[None]:
    """The time in which SQLite is used. Not to be nested; nothing in it may fork."""
    if not _registered:  # with the first use and not at import: importing starts nothing
        _registered.append(os.getpid())
        os.register_at_fork(
            before=_gate.before_fork,
            after_in_parent=_gate.after_fork_in_parent,
            after_in_child=_gate.after_fork_in_child,
        )
    _gate.enter()
    try:
        yield
    finally:
        _gate.leave()


def own_lock(descriptor: int) -> None:
    """Have *descriptor*, which holds a file lock, closed in forked children. To be called in a section."""
    _gate.locks.add(descriptor)


def release_lock(descriptor: int) -> None:
    """Close *descriptor* and so let go of its lock; nothing where a fork has closed it already."""
    if descriptor in _gate.locks:
        _gate.locks.discard(descriptor)
        os.close(descriptor)


def watch(connection: Closable) -> None:
    """Have *connection* closed before each fork of this process, for as long as it lives."""
    _gate.connections.add(connection)
