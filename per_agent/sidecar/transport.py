"""Between the HTTP protocol and its socket: answers written in one piece, and no reading ahead without bounds."""

import asyncio
from collections.abc import Sized
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl


class Corked:
    """A transport that sends an answer's head with what follows in the same breath: one system call, not two."""

    __slots__ = ("_held", "_loop", "_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self.is_closing = transport.is_closing
        self._loop = loop
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._transport.is_closing():  # its client was given up on: nobody is there to be answered
            self._held = b""
        elif self._held:
            self._transport.write(self._held + data)
            self._held = b""
        else:
            self._held = data
            self._loop.call_soon(self._flush)

    def write_at_once(self, data: bytes) -> None:
        """Send *data*, which is a whole answer, after what was held."""
        if not self._transport.is_closing():
            self._transport.write(self._held + data if self._held else data)
        self._held = b""

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def write_eof(self) -> None:
        self._flush()
        self._transport.write_eof()

    def _flush(self) -> None:
        if self._held and not self._transport.is_closing():
            self._transport.write(self._held)
        self._held = b""


class Flow(FlowControl):
    """Reads on only where no request waits for the one before it: what is sent ahead stays with its sender."""

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if not self._waiting:
            super().resume_reading()
