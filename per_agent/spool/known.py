"""`Known`: what a process remembers of its store, so that nobody has to read it."""

from per_agent.books import Books


class Known:
    """What a process knows of its store without reading, as of the last commit: for any thread to look at.

    Attributes:
        seq: the last sequence number given out.
        books: the books of each lane.
        parked: the events of each lane that are parked.
        damaged: those known to be lost with damaged blocks.
        unreadable: whether something is kept of journals that were not what was written.
    """

    __slots__ = ("books", "damaged", "laid_out", "parked", "seq", "unreadable")

    def __init__(
        self,
        seq: int,
        books: dict[str, Books],
        parked: dict[str, int],
        damaged: dict[str, int],
        *,
        unreadable: bool,
    ) -> None:
        self.seq = seq
        self.books = books
        self.parked = parked
        self.laid_out = False  # whether the store says by which layout it was written
        self.damaged = damaged
        self.unreadable = unreadable
