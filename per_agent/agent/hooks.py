"""Forks and exits: what the process does to all agents in it, without being asked.

A forked child has none of its parent's threads, and must not touch what they had open; it begins afresh. A
program that ends without `close` stores what it has and delivers what it can in a bounded time.
"""

import atexit
import os
import sys
import weakref
from collections.abc import Callable
from typing import Protocol


class _Agent(Protocol):
    def forked(self) -> None: ...
    def ended(self) -> None: ...


_agents: "weakref.WeakSet[_Agent]" = weakref.WeakSet()
_registered: list[int] = []


def watch(agent: _Agent) -> None:
    """Tell *agent* of forks (in the child) and of the end of the program, for as long as it lives."""
    _agents.add(agent)
    if not _registered:  # once a process and its children, and not at import: importing starts nothing
        _registered.append(os.getpid())
        os.register_at_fork(after_in_child=_after_fork)
        atexit.register(_at_exit)


def at_end_of_child(end: Callable[[], None]) -> None:
    """Have *end* called when this process is a `multiprocessing` child: it leaves by `os._exit`, without `atexit`."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing import util  # noqa: PLC0415  (only where it is loaded anyway)

        util.Finalize(None, end, exitpriority=0)


def _after_fork() -> None:
    for agent in list(_agents):
        agent.forked()


def _at_exit() -> None:
    for agent in list(_agents):
        agent.ended()
