"""Forks and exits: what the process does to all agents in it, without being asked.

A forked child has none of its parent's threads, and must not touch what they had open; it begins afresh. A
program that ends without `close` stores what it has and delivers what it can in a bounded time.
"""

import atexit
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, Protocol

from per_agent import late
from per_agent.log import Log

_START_TIMEOUT: Final = 2.0  # seconds that the end of the program waits for threads to start


class _Agent(Protocol):
    def forked(self) -> None: ...
    def ended(self) -> None: ...


_agents: "weakref.WeakSet[_Agent]" = weakref.WeakSet()
_registered: list[int] = []


def watch(agent: _Agent) -> None:
    """Tell *agent* of forks (in the child) and of the end of the program, for as long as it lives."""
    late.mind_forks()
    _agents.add(agent)
    if not _registered:  # once a process and its children, and not at import: importing starts nothing
        _registered.append(os.getpid())
        os.register_at_fork(after_in_child=_after_fork)
        atexit.register(_at_exit)


def before_threads_end(started: threading.Event) -> None:
    """When the program ends, wait until *started* is set, while threads can still be started.

    `atexit` is too late for that on some versions of Python. There is no public way; where the private one is
    gone, what was to be started by then is done by `ended` without threads.
    """
    register = getattr(threading, "_register_atexit", None)
    process = os.getpid()

    def wait() -> None:
        if os.getpid() == process:  # in a forked child nobody would set it
            started.wait(_START_TIMEOUT)

    if register is not None:
        with suppress(RuntimeError):  # the program is ending already
            register(wait)


def at_end_of_child(end: Callable[[], None]) -> None:
    """Have *end* called when this process is a `multiprocessing` child: it leaves by `os._exit`, without `atexit`."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing import util  # noqa: PLC0415  (only where it is loaded anyway)

        util.Finalize(None, end, exitpriority=0)


def _after_fork() -> None:
    for agent in list(_agents):
        with _each_for_itself("after a fork"):
            agent.forked()


def _at_exit() -> None:
    for agent in list(_agents):
        # A signal handler of the host may say `sys.exit` again meanwhile (gunicorn's do): that is under way.
        with _each_for_itself("at the end of the program"), suppress(SystemExit):
            agent.ended()


@contextmanager
def _each_for_itself(when: str) -> Iterator[None]:
    """One agent's defect must not keep the others from being told."""
    try:
        yield
    except Exception:  # noqa: BLE001  (outermost)
        Log().bug(f"an agent met a defect {when}")
