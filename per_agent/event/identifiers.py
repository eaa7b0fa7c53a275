"""Identifiers of events: unique over processes, hosts, forks and restarts, in the order of time, and cheap.

Each is a UUID of version 7 (RFC 9562): the time in milliseconds, a node of 48 random bits that is drawn anew in
each process, after each fork and after each million identifiers, and a counter. The counter is decimal, which is
as good as hexadecimal in a UUID: its last digits are texts that were made once, and the rest of an identifier
is made once a millisecond. So what is left for each is to put two texts together.
"""

import itertools
import os
from collections.abc import Callable
from typing import Final

_TAILS: Final = tuple(f"{number:03}" for number in range(1000))
_BLOCKS: Final = 1000  # of as many identifiers as there are tails


class Identifiers:
    """Makes identifiers. Threads may share one; `renew` gives a forked child its own.

    Attributes:
        new: `(now) -> str`: one for an event that is accepted *now*, in epoch seconds.
        renew: `() -> None`: draw a new node, so that no identifier of this process can be one of its parent's.
    """

    __slots__ = ("new", "renew")

    def __init__(self, entropy: Callable[[int], bytes] = os.urandom) -> None:
        self.new, self.renew = _maker(entropy)


def _maker(entropy: Callable[[int], bytes]) -> tuple[Callable[[float], str], Callable[[], None]]:
    # A closure: its names cost the caller a third of what an object's attributes do. What belongs together is in
    # one tuple, taken and put as a whole: no head ever meets the same tail twice, whatever threads and clocks do.
    node: tuple[str, Callable[[], int]]  # and its blocks
    state: tuple[
        float, float, str, Callable[[], str], str
    ]  # since and until when; the head; tails; node and block

    def renew() -> None:
        nonlocal node, state
        node = (entropy(6).hex(), itertools.count().__next__)
        state = (0.0, 0.0, "", iter(()).__next__, "")

    def new(now: float) -> str:
        since, until, head, tail, place = state
        try:
            end = tail()
        except StopIteration:
            return next_block(now)
        return head + end if since <= now < until else next_moment(now, place, tail, end)

    def next_block(now: float) -> str:
        nonlocal node
        drawn, blocks = node
        block = blocks()
        if block >= _BLOCKS:
            node = drawn, blocks = (entropy(6).hex(), itertools.count().__next__)
            block = blocks()
        tail = iter(_TAILS).__next__
        place = f"-7{drawn[:3]}-8{drawn[3:6]}-{drawn[6:]}{block:03}"
        return next_moment(now, place, tail, tail())

    def next_moment(now: float, place: str, tail: Callable[[], str], end: str) -> str:
        nonlocal state
        stamp = int(now * 1000)
        text = f"{stamp & 0xFFFFFFFFFFFF:012x}"
        head = f"{text[:8]}-{text[8:]}{place}"
        state = (stamp / 1000, (stamp + 1) / 1000, head, tail, place)
        return head + end

    renew()
    return new, renew
