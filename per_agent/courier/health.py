"""How one destination is doing: open, paused after trouble, or trying with a single request.

Trouble of a destination is counted once for all the requests that met it together: each request carries
the epoch in which it was sent, and only those of the present epoch count. After a pause one request is let
through; its success opens the destination fully, its failure makes the next pause longer.
"""

from typing import Any, Literal

import msgspec

from per_agent.backoff import Backoff

State = Literal["open", "retrying", "halted"]


class Condition(msgspec.Struct, frozen=True):
    """What an operator wants to know of a destination.

    Attributes:
        state: `open`; `retrying` after trouble that time heals; `halted` by trouble that a person must heal
            (it is tried again all the same).
        reason: the upstream's or the network's words, empty when open.
        since: when this state began, in epoch seconds.
        failures: how often it failed in a row.
    """

    state: State = "open"
    reason: str = ""
    since: float = 0.0
    failures: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {field: getattr(self, field) for field in self.__struct_fields__}


class Note(Condition, frozen=True):
    """What is kept in the spool, for those who look at it from outside: what the lane's courier last said.

    Attributes:
        counts_on_arrival: whether the destination counts events when they arrive.
        no_answer: as `Delivery.no_answer`.
        teller: whose count that is; it says the same in all the spools that it has.
    """

    counts_on_arrival: bool = False
    no_answer: int = 0
    teller: str = ""

    @staticmethod
    def of(condition: Condition, *, counts_on_arrival: bool, no_answer: int, teller: str) -> bytes:
        """Its JSON."""
        said = {"counts_on_arrival": counts_on_arrival, "no_answer": no_answer, "teller": teller}
        return msgspec.json.encode({**condition.as_dict(), **said})


class Health:
    """One destination's condition and what may be sent in it. Times are monotonic, but for `since`."""

    def __init__(self, backoff: Backoff, concurrency: int) -> None:
        self._backoff = backoff
        self._concurrency = concurrency
        self._resume_at = 0.0
        self.epoch = 0
        self.condition = Condition()

    @property
    def open(self) -> bool:
        return self.condition.state == "open"

    def tune(self, backoff: Backoff) -> None:
        """The next pauses are those of *backoff*."""
        self._backoff = backoff

    def hurry(self) -> None:
        """End the pause: a single request may be sent now."""
        self._resume_at = 0.0

    def allowed(self, now: float) -> int:
        """How many requests may be in flight."""
        if self.open:
            return self._concurrency
        return 1 if now >= self._resume_at else 0

    def resumes_in(self, now: float) -> float | None:
        """Seconds until a request may be tried again, None when that does not depend on time."""
        return None if self.open or now >= self._resume_at else self._resume_at - now

    def failed(
        self, state: State, reason: str, epoch: int, now: float, wall: float, after: float | None = None
    ) -> bool:
        """A request of *epoch* met trouble of the whole destination. True when the state or its reason changed."""
        if epoch != self.epoch:
            return False
        before = self.condition
        failures = before.failures + 1
        self.epoch += 1
        self._resume_at = now + self._backoff.wait(failures, after)
        since = before.since if before.state == state else wall
        self.condition = Condition(state, reason, since, failures)
        return (before.state, before.reason) != (state, reason)

    def answered(self, epoch: int, wall: float) -> bool:
        """The destination answered a request of *epoch* as it should. True when it was not open before."""
        if self.open or epoch != self.epoch:
            return False
        self.epoch += 1
        self.condition = Condition(since=wall)
        return True
