"""The blocks of one lane that are in memory: read ahead a bounded number, settled as their events are decided."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

import msgspec

from per_agent import failpoint
from per_agent.event import Event
from per_agent.spool import Block, BlockId, DeadLetter, Parking, Settlement, Spool

_STRETCH: Final = 32  # times the size that a window may grow to for blocks that failed

Rank: TypeAlias = tuple[float, BlockId]
"""What orders blocks of all spools: when they were made, in epoch seconds; in one spool always its own order."""


class Item(msgspec.Struct, gc=False, eq=False):
    """One event on its way to one destination. (Out of the collector's way: nothing that it holds leads back to it.)

    Attributes:
        at: its position in its block.
        refusals: those that are not certain.
        refused_alone: of these, those that speak against this event.
        refused_since: what was offered after this one may speak against it.
        own_troubles: failures of this event while others went through.
        seen_successes: the route's successes when this event last failed; -1: it never did.
    """

    loaded: "Loaded"
    at: int
    event: Event
    attempts: int = 0
    refusals: int = 0
    refused_alone: int = 0
    refused_since: int = 0
    own_troubles: int = 0
    seen_successes: int = -1


class Loaded:
    """One block in memory, and what has been decided about its events since the last settlement.

    At most one settlement is under way at a time; what is decided meanwhile goes into the next.
    """

    __slots__ = (
        "_busy", "_crossed", "_dead", "_delivered", "_hurried", "_late", "_parked", "block", "failed",
        "left", "rank", "window",
    )  # fmt: skip

    def __init__(self, window: "Window", block: Block, rank: Rank) -> None:
        self.window = window
        self.block = block
        self.rank = rank
        self.left = block.count - block.settled.bit_count()  # events whose settlement is not committed
        self.failed = 0  # events that failed at least once
        self._busy = False
        self._hurried = False  # whether the settlement under way, and what comes after it, is not to linger
        self._delivered: list[int] = []
        self._late: list[int] = []
        self._crossed: list[int] = []
        self._dead: list[tuple[int, DeadLetter]] = []
        self._parked: dict[str, tuple[Parking, list[int]]] = {}

    def delivered(self, *several: int) -> None:
        self._delivered += several

    def late(self, at: int) -> None:
        """Event *at*, which was delivered, arrived late."""
        self._late.append(at)

    def crossed(self, at: int) -> None:
        """Event *at*, which was delivered, arrived in another month than it happened."""
        self._crossed.append(at)

    def dead(self, at: int, letter: DeadLetter) -> None:
        self._dead.append((at, letter))

    def parked(self, at: int, parking: Parking) -> None:
        self._parked.setdefault(parking.key, (parking, []))[1].append(at)

    def settle(self, later: Callable[[Callable[[], None]], None], *, hurried: bool) -> None:
        """Have the spool commit what was decided; *later* runs a call in the courier's thread."""
        if not self._busy:
            self.settle_rest(later, hurried=hurried)
        elif hurried and not self._hurried:
            self._hurried = True
            self.window.spool.hurry()

    def settle_rest(self, later: Callable[[Callable[[], None]], None], *, hurried: bool = True) -> None:
        """As `settle`, also while an earlier settlement is under way."""
        decided = len(self._delivered) + len(self._dead) + sum(len(ats) for _, ats in self._parked.values())
        if not decided:
            return
        what = Settlement(
            delivered=self._delivered,
            dead=self._dead,
            parked=list(self._parked.values()),
            late=self._late,
            crossed=self._crossed,
        )
        self._busy, self._hurried = True, hurried
        self._delivered, self._late, self._crossed, self._dead, self._parked = [], [], [], [], {}

        failpoint.reach("before settle")

        def committed() -> None:
            failpoint.reach("after settle")
            again, self._busy, self._hurried = self._hurried, False, False
            self.left -= decided
            self.window.parked([parking for parking, _ in what.parked])
            if self.left:
                self.settle(later, hurried=again)
            else:
                self.window.drop(self)

        self.window.spool.settle(self.block, what, lambda: later(committed), hurried=hurried)


class Window:
    """The read-ahead of one lane in one spool."""

    def __init__(
        self,
        spool: Spool,
        lane: str,
        size: int,
        arrived: Callable[["Window", int, list[Block]], None],
        parked: Callable[[Sequence[Parking]], None],
    ) -> None:
        self.spool = spool
        self._lane = lane
        self.size = size
        self._arrived = arrived  # called in the spooler's thread
        self.parked = parked  # called in the courier's thread, when events were parked on the disk
        self._loaded: dict[BlockId, Loaded] = {}
        self._after: BlockId | None = None
        self._youngest = 0.0  # when the youngest block was made that was taken since the beginning
        self._asking = False
        self._turn = 0  # tells answers to the present question from those to one that was withdrawn

    def __iter__(self) -> Iterator[Loaded]:
        return iter(self._loaded.values())

    @property
    def oldest(self) -> float | None:
        """When the oldest block in memory was made, in epoch seconds. For any thread."""
        return min((loaded.block.made_at for loaded in tuple(self._loaded.values())), default=None)

    @property
    def full(self) -> bool:
        """Whether no more blocks are to be read.

        A block of which every event has failed does not count, up to a bound: some poison events must not
        keep all others from being tried, which looks like an outage as long as nobody else is asked.
        """
        return self._room() <= 0

    def _room(self) -> int:
        """How many blocks may be read."""
        steady = sum(1 for loaded in self._loaded.values() if loaded.failed < loaded.left)
        return min(self.size - steady, self.size * _STRETCH - len(self._loaded))

    def ask(self) -> None:
        """Ask the spool for more blocks, as many as there is room for."""
        if self._asking or self.full:
            return
        self._asking = True
        turn = self._turn
        # After a rewind the blocks in memory come along once more, and are passed over.
        limit = self._room() + (len(self._loaded) if self._after is None else 0)
        self.spool.head(self._lane, self._after, limit, lambda blocks: self._arrived(self, turn, blocks))

    def take(self, turn: int, blocks: list[Block], now: float) -> list[Loaded]:
        """The blocks of an answer that are new; none when the question was withdrawn meanwhile.

        *now*, in epoch seconds, bounds their ranks: a block that was made by a clock that ran ahead must not
        wait for all that other spools get until then.
        """
        if turn != self._turn:
            return []
        self._asking = False
        fresh = []
        for block in blocks:
            if block.id not in self._loaded:
                if self.full:
                    break
                self._youngest = max(self._youngest, min(block.made_at, now))
                loaded = Loaded(self, block, (self._youngest, block.id))
                self._loaded[block.id] = loaded
                fresh.append(loaded)
            self._after = block.id
        return fresh

    def rewind(self) -> None:
        """Older blocks have appeared: begin again from the oldest."""
        self._turn += 1
        self._asking = False
        self._after = None
        self._youngest = 0.0

    def drop(self, loaded: Loaded) -> None:
        """All of *loaded* is settled."""
        del self._loaded[loaded.block.id]
