"""`Pulse`: whether the threads of an agent go on, found out by asking them to say so.

The question goes through each thread's own loop, so a thread that is deadlocked, or stuck in a call, does not
answer. What they do not wait for cannot keep them from answering: a slow upstream is waited for by sender
threads, and a disk that is full or refuses is tried again from a loop that goes on answering. A commit that a
dead disk does not even refuse is a thread that is stuck, and shows as one: nothing goes on then.
"""

from collections.abc import Iterable
from typing import Protocol


class Part(Protocol):
    """Something with a thread of its own: `per_agent.spool.Spool`, `per_agent.courier.Courier`."""

    @property
    def name(self) -> str: ...

    def call(self, answer: "Sign") -> None: ...


class Sign:
    """The answer of one thread to one question."""

    __slots__ = ("given",)

    def __init__(self) -> None:
        self.given = False

    def __call__(self) -> None:
        self.given = True


class Pulse:
    """The questions under way. For one thread at a time."""

    def __init__(self) -> None:
        self._asked: dict[Part, Sign] = {}

    def __call__(self, parts: Iterable[Part]) -> list[str]:
        """Ask *parts* for a sign of life. Returns the names of those that have not given one since the last call."""
        present = tuple(parts)
        silent = [part for part in present if part in self._asked and not self._asked[part].given]
        self._asked = {part: sign for part, sign in self._asked.items() if part in silent}
        for part in present:
            if part not in self._asked:  # one that is silent has its question in its inbox already
                self._asked[part] = sign = Sign()
                part.call(sign)
        return [part.name for part in silent]
