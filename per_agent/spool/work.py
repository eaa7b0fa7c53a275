"""What the spooler is given: new events from a source, changes to make, and questions about a lane."""

from collections.abc import Callable
from typing import Any, Protocol

from per_agent.errors import PerAgentError
from per_agent.event import Receipt
from per_agent.journal import Journal
from per_agent.log import Log
from per_agent.spool.block import Block, BlockId
from per_agent.spool.transaction import Transaction


class Source(Protocol):
    """Where new events come from. Called from the spooler's thread only."""

    def take(self, limit: int) -> list[Receipt]:
        """Up to *limit* receipts in the order in which they were accepted; they are ours from then on."""
        ...

    def take_dropped(self) -> dict[str, int]:
        """For each lane, the events that were given up under the overflow policy since the last call."""
        ...

    def waiting(self) -> int: ...

    @property
    def since(self) -> float:
        """When it was last seen that something waits, in epoch seconds. For any thread."""
        ...

    def wake_at(self, count: int | None) -> None:
        """Call `Spool.wake` when *count* receipts wait; None: not at all."""
        ...

    def refuse(self, reason: PerAgentError | None) -> None:
        """Take no more events in, for *reason*, by the overflow policy; None: go on."""
        ...

    def seal(self) -> None:
        """Take no more events in, ever."""
        ...

    @property
    def journal(self) -> Journal | None:
        """Where the events lie as well until they are stored, so that they outlive the process."""
        ...

    def open_journal(self) -> None:
        """Make the journal where there is to be one and is none. Never raises."""
        ...


def nothing(_: object) -> None:
    """What is done where nothing is to be done."""


class Sign:
    """A question whether the thread goes on: *give* is called when it comes to it, and must not block."""

    __slots__ = ("give",)

    def __init__(self, give: Callable[[], None]) -> None:
        self.give = give


class Work:
    """One change of the spool, and whom to tell: `then` after the commit, `fail` when it cannot be made."""

    __slots__ = ("apply", "fail", "hurried", "stirs", "then")

    def __init__(
        self,
        apply: Callable[[Transaction], Any],
        then: Callable[[Any], None],
        fail: Callable[[BaseException], None],
        *,
        stirs: bool = False,
        hurried: bool = False,
    ) -> None:
        self.apply = apply
        self.then = then
        self.fail = fail
        self.stirs = stirs  # whether blocks may have appeared that are not new events
        self.hurried = hurried  # whether somebody waits, so that lingering would hold them up

    def tell(self, result: Any, log: Log) -> None:
        """Tell whoever asked for it. What goes wrong there must not keep others from being told."""
        try:
            self.then(result)
        except Exception:  # noqa: BLE001  (a defect of theirs)
            log.bug("a change was made, and telling of it failed")


class Head:
    """A courier's question for the blocks of a lane that follow `after`; answered when there are some."""

    __slots__ = ("after", "lane", "limit", "reply")

    def __init__(
        self, lane: str, after: BlockId | None, limit: int, reply: Callable[[list[Block]], None]
    ) -> None:
        self.lane = lane
        self.after = after
        self.limit = limit
        self.reply = reply
