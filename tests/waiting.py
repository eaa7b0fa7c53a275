"""Waiting for a condition in tests: asked again and again until it holds, never slept for."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], timeout: float = 30.0, every: float = 0.02) -> T:
    """The first true value of *condition*. Fails when there is none within *timeout* seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"did not come about within {timeout} s; last seen: {value!r}")
        time.sleep(every)
    return value
