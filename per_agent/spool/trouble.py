"""What keeps a spool from committing: said once for each kind, and when to try again."""

import time
from typing import Final

from per_agent.backoff import Backoff
from per_agent.log import Log
from per_agent.spool.damage import certain

_RETRY: Final = Backoff(initial=0.1, ceiling=5.0)


class Trouble:
    """The disk's present trouble, in words; None when it is well."""

    def __init__(self) -> None:
        self.words: str | None = None
        self.failures = 0
        self.damage: str | None = None  # what was found to be damaged: not to be tried again as it is
        self._retry_at = 0.0  # monotonic
        self.log = Log()

    def met(self, error: BaseException) -> None:
        """The disk refused. Nothing is lost: it is tried again after `seconds_left`."""
        words = f"{type(error).__name__}: {error}".rstrip(": ")
        if self.words != words:
            self.log.error("the spool cannot be written: events wait in memory", trouble=words)
        self.words = words
        if certain(error):
            self.damage = words
        self.failures += 1
        self._retry_at = time.monotonic() + _RETRY.wait(self.failures)

    def over(self) -> None:
        """The disk did what it should."""
        self.failures = 0
        if self.words is not None:
            self.log.info("the spool can be written again")
            self.words = None

    def forget(self) -> None:
        """Nothing is left that could be tried again."""
        self.failures = 0
        self.words = None

    def seconds_left(self) -> float:
        """How long to wait before the next try."""
        return max(0.0, self._retry_at - time.monotonic())
