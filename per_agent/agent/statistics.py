"""`Statistics`: how a running agent is doing, from what it knows in memory: cheap enough to be asked every second.

The books here are those of this process's own spool and of the spools that it has adopted. They are the
persisted ones, so they go on where an earlier process stopped; a recount is `Agent.books`.
"""

from collections.abc import Sequence

import msgspec

from per_agent.agent.engine import Engine
from per_agent.books import Books, total
from per_agent.courier import Delivery
from per_agent.intake import Intake
from per_agent.spool import SpoolStatistics


class DestinationStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """One destination.

    Attributes:
        stored: the committed books.
        in_memory: events that were accepted and are not yet committed.
        parked: events that wait for something other than time; they are pending, too.
        damaged: events known to be lost with damaged blocks; they are dead, and have no dead letter.
        oldest: since when the oldest pending event has been pending, in epoch seconds: since it was stored, or
            parked, or about since it has been in memory. None where nothing is known to be pending.
        delivery: how delivering to it goes; None where no running courier has it.
    """

    stored: Books
    in_memory: int
    parked: int
    damaged: int
    oldest: float | None
    delivery: Delivery | None

    @property
    def books(self) -> Books:
        """The committed books and what is in memory, which counts as accepted and pending."""
        return self.stored + Books(self.in_memory, pending=self.in_memory)

    @property
    def dead_letters(self) -> int:
        """How many dead letters lie there."""
        return self.stored.dead - self.stored.purged - self.damaged

    @property
    def late_total(self) -> int | None:
        """Events that were delivered more than an hour after they happened; see `courier.arrivals`.

        None where the destination does not count events when they arrive, or no running courier has it.
        """
        return self.stored.late if self._counts_on_arrival else None

    @property
    def period_crossed_total(self) -> int | None:
        """Events that were delivered in another UTC month than they happened; None as above."""
        return self.stored.crossed if self._counts_on_arrival else None

    @property
    def _counts_on_arrival(self) -> bool:
        return self.delivery is not None and self.delivery.counts_on_arrival


class IntakeStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """The buffer before the spool.

    Attributes:
        waiting: how many events wait in it.
        journal: whether what is in memory is in a journal, too, and so outlives the process.
        overflows: how often the overflow policy was applied, by what it did.
    """

    waiting: int
    journal: bool
    overflows: dict[str, int]


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """All of it.

    Attributes:
        spool: the agent's own spool; None before it runs. After `close` as it was left: what is still in memory
            then could not be stored.
        adopted: the spools of dead processes that it is delivering, or keeps for their dead letters.
        complete: whether what earlier processes left was looked for. Before that, the books may be lower than
            they were when the last process ended.
    """

    destinations: dict[str, DestinationStatistics]
    intake: IntakeStatistics
    spool: SpoolStatistics | None
    adopted: tuple[SpoolStatistics, ...]
    complete: bool


def statistics(names: Sequence[str], intake: Intake, engine: Engine | None) -> Statistics:
    """How the agent with destinations *names* is doing. Waits for nothing, reads nothing, and is for any thread."""
    spools = () if engine is None else tuple(spool.statistics() for spool in engine.spools)
    deliveries = {} if engine is None else engine.courier.deliveries()
    waiting = intake.in_memory()
    books = total(each.books for each in spools)
    lanes = dict.fromkeys([*names, *sorted(books)])
    return Statistics(
        destinations={
            lane: _destination(lane, books.get(lane, Books()), waiting, spools, deliveries.get(lane))
            for lane in lanes
        },
        intake=IntakeStatistics(
            waiting=intake.waiting(), journal=intake.journal is not None, overflows=intake.overflows
        ),
        spool=spools[0] if spools else None,
        adopted=spools[1:],
        complete=engine is not None and engine.complete,
    )


def _destination(
    lane: str,
    stored: Books,
    waiting: dict[str, int],
    spools: Sequence[SpoolStatistics],
    delivery: Delivery | None,
) -> DestinationStatistics:
    in_memory = waiting.get(lane, 0) + sum(each.in_memory.get(lane, 0) for each in spools)
    oldest = [None if delivery is None or not stored.pending else delivery.oldest]
    if in_memory:
        oldest += (each.oldest_in_memory for each in spools)
    return DestinationStatistics(
        stored=stored,
        in_memory=in_memory,
        parked=sum(each.parked.get(lane, 0) for each in spools),
        damaged=sum(each.damaged.get(lane, 0) for each in spools),
        oldest=min((moment for moment in oldest if moment is not None), default=None),
        delivery=delivery,
    )
