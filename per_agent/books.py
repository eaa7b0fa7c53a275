"""The books: the persisted counts that prove that nothing was lost.

For each destination, at any moment and after any crash::

    accepted = delivered + dead + dropped + pending

`pending` is not computed from the other four. The spool counts it as blocks come and go, and an audit
recounts it from the blocks themselves, so an unbalanced book is evidence and not arithmetic.
"""

from collections.abc import Iterable, Mapping

import msgspec


class Books(msgspec.Struct, frozen=True, array_like=True):
    """One destination's counts of events.

    Attributes:
        accepted: events taken in for this destination.
        delivered: events that the destination took, or already had.
        dead: events that the destination refused for good, less those requeued. Purged ones stay counted here.
        dropped: events given up under an overflow policy that the operator chose.
        pending: events still to be delivered, parked ones included.
        purged: those of `dead` whose dead letter an operator has since deleted.
        late: those of `delivered` that reached a destination which counts by arrival noticeably later than they
            happened; see `courier.arrivals`.
        crossed: those of `delivered` that reached such a destination in another UTC month than they happened.
    """

    accepted: int = 0
    delivered: int = 0
    dead: int = 0
    dropped: int = 0
    pending: int = 0
    purged: int = 0
    late: int = 0
    crossed: int = 0

    @property
    def balanced(self) -> bool:
        return self.accepted == self.delivered + self.dead + self.dropped + self.pending

    def __add__(self, other: "Books") -> "Books":
        return Books(*(mine + theirs for mine, theirs in zip(self._counts(), other._counts(), strict=True)))

    def _counts(self) -> tuple[int, ...]:
        return (
            self.accepted, self.delivered, self.dead, self.dropped, self.pending, self.purged,
            self.late, self.crossed,
        )  # fmt: skip

    def as_dict(self) -> dict[str, int]:
        """The counts that balance, and `purged`, by name, for JSON; the others prove nothing."""
        return dict(zip(self.__struct_fields__[:6], self._counts()[:6], strict=True))


def total(several: Iterable[Mapping[str, Books]]) -> dict[str, Books]:
    """The sum of the books of *several* spools, for each destination."""
    sums: dict[str, Books] = {}
    for books in several:
        for destination, counts in books.items():
            sums[destination] = sums.get(destination, Books()) + counts
    return sums
