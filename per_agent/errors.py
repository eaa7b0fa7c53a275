"""Every error that per_agent raises, in one tree.

::

    PerAgentError
    ├── ConfigError
    ├── InvalidEvent (also a ValueError)
    ├── BufferFull
    ├── AgentClosed
    ├── SpoolError
    │   ├── SpoolFull
    │   └── SpoolCorrupt
    └── UpstreamError
        ├── Unauthorized
        ├── Refused
        ├── RateLimited
        └── Unavailable

`add_*` raises `InvalidEvent`, `AgentClosed` and, by the chosen overflow policy, `BufferFull` or
`SpoolFull`; it never raises because of an upstream. `UpstreamError` comes from passthrough calls, and
from `Receipt.delivered` when the upstream refused the event for good.
"""

from collections.abc import Sequence


class PerAgentError(Exception):
    """The root: catch this to catch all that is ours."""


class ConfigError(PerAgentError):
    """The configuration is wrong. `problems` holds one sentence for each problem found."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("; ".join(self.problems))


class InvalidEvent(PerAgentError, ValueError):
    """The caller's mistake: the event was not accepted. `problems` maps each field to what is wrong with it."""

    def __init__(self, problems: dict[str, str]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{field}: {problem}" for field, problem in problems.items()))

    def __reduce__(self) -> tuple[object, ...]:
        # Without it, unpickling (in the parent of a worker process, say) calls this class with the text.
        return (type(self), (self.problems,), self.__dict__)


class BufferFull(PerAgentError):
    """The in-memory buffer is full and the policy is `raise`: the event was not accepted."""


class AgentClosed(PerAgentError):
    """The agent was closed: the event was not accepted."""


class SpoolError(PerAgentError):
    """The spool's folder cannot be used as it is."""


class SpoolFull(SpoolError):
    """The spool reached its size limit: the event was not accepted."""


class SpoolCorrupt(SpoolError):
    """Bytes on the disk are not what was written there."""


class UpstreamError(PerAgentError):
    """The upstream said no, or nothing.

    Attributes:
        destination: the name of the destination that was asked.
        call: what was asked, as method and path, without query and without credentials.
        status: the HTTP status, or None when there was no answer.
        words: the upstream's own words, or what the network said; never a token.
        retry_after: seconds that the upstream asked to wait, or None.
    """

    def __init__(
        self,
        destination: str,
        call: str,
        words: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.destination = destination
        self.call = call
        self.status = status
        self.words = words
        self.retry_after = retry_after
        answered = "no answer" if status is None else f"HTTP {status}"
        super().__init__(f"{destination}: {call}: {answered}: {words}")

    def __reduce__(self) -> tuple[object, ...]:
        asked = (self.destination, self.call, self.words)
        return (_rebuild, (type(self), asked, self.status, self.retry_after), self.__dict__)


def _rebuild(
    kind: type[UpstreamError], asked: tuple[str, str, str], status: int | None, retry_after: float | None
) -> UpstreamError:
    return kind(*asked, status=status, retry_after=retry_after)


class Unauthorized(UpstreamError):
    """The credentials are missing, wrong, expired, or lack a scope or role."""


class Refused(UpstreamError):
    """The upstream understood and refused: asking again as it is would change nothing."""


class RateLimited(UpstreamError):
    """The upstream asks to slow down; `retry_after` says for how long, where it did."""


class Unavailable(UpstreamError):
    """The upstream cannot be reached, is failing, or what answered is not the upstream."""
