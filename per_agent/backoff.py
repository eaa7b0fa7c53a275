"""The arithmetic of waiting: the time until the next attempt, and `Retry-After`.

The exponential is tenacity's `wait_exponential`. Its `wait_random_exponential` is that same arithmetic with
a `random.uniform(min, value)` around it, drawn from the global `random` with no way to pass another source;
so the jitter is drawn here, from a source that is an argument, and with a floor.

The floor: full jitter, U(0, value), can be close to 0 many times in a row, and the lone sender that tries a
failing upstream would hammer it. From 10 % of the un-jittered value upwards, the waits of a hundred agents
are still spread over nine tenths of the window, and those of one agent do grow.
"""

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from typing import Final

from per_agent import late
from per_agent.settings import DeliverySettings

MAX_RETRY_AFTER: Final = 300.0
"""Seconds. An upstream that asks for more is asked again after these: an hour may be a slip of its own."""

_FLOOR: Final = 0.1  # of the un-jittered value; why, is told at the top
_MAX_ATTEMPT: Final = 1000  # 2**999 still fits a float; tenacity 9.0 would compute 2**attempt at any size
_SECONDS: Final = re.compile(r"[0-9]+(\.[0-9]+)?")
_MAX_DATE_CHARS: Final = 64  # the longest HTTP-date has 33


def retry_after(header: str | None, now: float) -> float | None:
    """The seconds that a `Retry-After` *header* asks to wait, within [0, `MAX_RETRY_AFTER`].

    It holds seconds or an HTTP-date; *now* is in epoch seconds, and a date in the past gives 0.0. A fraction
    of a second, which RFC 9110 does not have but servers send, is understood. None where there is no header
    or it makes no sense, negative numbers included. Never raises, whatever it holds.
    """
    if header is None or not header.isascii():  # int() and the date parser take the digits of any script
        return None
    text = header.strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), MAX_RETRY_AFTER)  # int() refuses 4,301 digits, where float() says inf
    if len(text) > _MAX_DATE_CHARS:
        return None
    with late.here():
        from email.utils import parsedate_to_datetime  # noqa: PLC0415  (most upstreams say seconds)
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:  # the asctime form, or "-0000": HTTP knows no other zone than GMT
            moment = moment.replace(tzinfo=UTC)
        wait = moment.timestamp() - now
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return None if math.isnan(wait) else min(max(wait, 0.0), MAX_RETRY_AFTER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long to wait before the next attempt; all in seconds.

    Attributes:
        initial: the longest wait after the first attempt; it doubles with each further one.
        ceiling: the longest wait, after however many attempts.
        retry_after_ceiling: the longest wait that an upstream may ask for.
        uniform: the source of jitter, called with the lowest and the highest value. The default is the
            global source, which Python seeds anew in a forked child, so siblings do not wait in step.
    """

    initial: float = 0.5
    ceiling: float = 60.0
    retry_after_ceiling: float = MAX_RETRY_AFTER
    uniform: Callable[[float, float], float] = random.uniform

    @classmethod
    def of(cls, settings: DeliverySettings) -> "Backoff":
        """As *settings* have it."""
        return cls(
            initial=settings.backoff_initial,
            ceiling=settings.backoff_max,
            retry_after_ceiling=settings.retry_after_max,
        )

    def wait(self, attempt: int, after: float | None = None) -> float:
        """Seconds to wait after *attempt* failed; attempts count from 1.

        Without *after*: between 10 % and 100 % of `min(initial * 2**(attempt - 1), ceiling)`.

        *after* is what the upstream asked for. It is then the wait, up to `retry_after_ceiling`, with up to
        10 % or `initial` (the larger) added and never anything taken away: all clients were told the same
        number, and an upstream that always says 0 must not be asked in a hot loop.
        """
        if after is None or math.isnan(after):
            return self._jittered(self._exponential(attempt))
        asked = min(max(after, 0.0), self.retry_after_ceiling)
        return asked + self._jittered(max(asked * 0.1, self.initial))

    def _exponential(self, attempt: int) -> float:
        number = min(max(attempt, 1), _MAX_ATTEMPT)
        try:
            with late.here():
                from tenacity import (  # noqa: PLC0415  (it loads asyncio)
                    RetryCallState,
                    Retrying,
                    wait_exponential,
                )
        except Exception:  # noqa: BLE001  (no file can be opened, perhaps: the trouble that is to be waited for)
            return min(self.initial * 2.0 ** (number - 1), self.ceiling)
        state = RetryCallState(Retrying(), None, (), {})
        state.attempt_number = number
        return wait_exponential(multiplier=self.initial, max=self.ceiling)(state)

    def _jittered(self, longest: float) -> float:
        return min(self.uniform(longest * _FLOOR, longest), longest)  # uniform() may round up past its end
