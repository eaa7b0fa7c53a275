"""Failpoints: named steps of durability at which a test can have this process killed.

`PER_AGENT_TEST_DIE_AT="block written:3"` ends the process with SIGKILL when it comes to that step for the third
time (without a number: the first). For tests only: nothing else reads it, and what is not armed does nothing.
"""

import os
import signal
from itertools import count
from typing import Final

ENVIRONMENT: Final = "PER_AGENT_TEST_DIE_AT"

POINTS: Final = frozenset(
    {
        # the folders, the files and the tables are made
        "folders made",
        "folder synced",
        "spool made",
        "spool locked",
        "database made",
        "database opened",
        "ledger file made",
        "ledger linked",
        "ledger tables written",
        "ledger tables committed",
        "token written",
        "token linked",
        # an event comes in
        "journal file made",
        "journal sized",
        "journal made",
        "route half written",
        "route written",
        "slot written",
        "part written",
        # and is stored
        "journal moved",
        "block written",
        "before commit",
        "after commit",
        "commit noted",
        "committed alone",
        "slots released",
        "journal replaced",
        "journal given up",
        # what a dead process left is found again
        "journal taken",
        "journal recovered",
        "journal removed",
        "lane adopted",
        "books absorbed",
        "spool renamed",
        "spool removed",
        "spool swept",
        # it is delivered
        "request sent",
        "answer read",
        "before settle",
        "dead letter written",
        "event parked",
        "events unparked",
        "after settle",
        "ledger written",
        "ledger committed",
        # somebody asks for a change of the dead letters
        "file half written",
        "letters asked",
        "letters taken",
        "letters requeued",
        "letters purged",
        "letters answered",
        "answer fetched",
        # what is damaged is set aside
        "rows salvaged",
        "salvage balanced",
        "salvage reported",
        "salvage built",
        "damaged file moved",
        "salvage moved",
        "report moved",
        "salvage removed",
        # and the disk is kept small, with room to spare
        "checkpoint",
        "ballast allocated",
        "ballast cut",
    }
)
"""Every step; a test dies at each of them."""

_passed = count(1)


def armed(point: str) -> bool:
    """Whether this process is to die at *point*."""
    assert point in POINTS, point
    return os.environ.get(ENVIRONMENT, "").partition(":")[0] == point


def reach(point: str) -> None:
    """The process comes to *point*. Does nothing unless a test has armed it."""
    if ENVIRONMENT in os.environ and armed(point):
        _, _, which = os.environ[ENVIRONMENT].partition(":")
        if next(_passed) >= int(which or 1):
            os.kill(os.getpid(), signal.SIGKILL)
