"""The async twin of a blocking call."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

_Given = ParamSpec("_Given")
_Answer = TypeVar("_Answer")


async def in_thread(
    call: Callable[_Given, _Answer], *arguments: _Given.args, **named: _Given.kwargs
) -> _Answer:
    """What *call* gives, made in a thread of the running loop's own executor."""
    import asyncio  # noqa: PLC0415  (heavy, and loaded already where a loop runs)

    return await asyncio.to_thread(call, *arguments, **named)
