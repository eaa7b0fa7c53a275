"""The sockets of the test upstream: HTTP/1.1 with keep-alive, and every way of misbehaving on the wire.

One thread, one event loop: what is counted has one order, and nothing waits for a lock.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit


@dataclass(slots=True)
class Request:
    method: str
    path: str  # as it came, still percent-encoded
    query: dict[str, str]
    headers: dict[str, str]  # lower-cased names
    body: bytes
    raw_target: str = ""

    @property
    def parts(self) -> list[str]:
        """The path's segments, decoded one by one, as a router does."""
        return [unquote(part) for part in self.path.strip("/").split("/")]


@dataclass(slots=True)
class Reply:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0  # seconds before the first byte
    cut: bool = False  # close the connection instead of answering
    truncate: bool = False  # promise the whole body, send half of it, close
    drip: float = 0.0  # seconds between the bytes of the body
    drip_headers: float = 0.0  # seconds between the bytes of all, status line included
    endless: bool = False  # a body that never ends, as fast as it is read


class Connection(asyncio.Protocol):
    """One client. Answers a request before it looks at the next one."""

    def __init__(self, answer: Callable[[Request], Reply], opened: Callable[[], None]) -> None:
        self._answer = answer
        self._opened = opened
        self._buffer = bytearray()
        self._busy = False
        self._used = False
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._next()

    def _next(self) -> None:
        while not self._busy and not self._transport.is_closing():
            request = self._parse()
            if request is None:
                return
            if not self._used and not request.path.startswith("/__"):  # steering is no traffic
                self._used = True
                self._opened()
            self._reply(self._answer(request), close=request.headers.get("connection", "").lower() == "close")

    def _parse(self) -> Request | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", "0"))
        if len(self._buffer) < end + 4 + length:
            return None
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        del self._buffer[: end + 4 + length]
        method, target, _ = lines[0].split(" ", 2)
        split = urlsplit(target)
        query = dict(parse_qsl(split.query, keep_blank_values=True))
        return Request(method, split.path, query, headers, body, target)

    def _reply(self, reply: Reply, *, close: bool) -> None:
        if reply.cut and not reply.delay:
            self._transport.abort()
            return
        close = close or reply.truncate or reply.endless
        head = [f"HTTP/1.1 {reply.status} {_phrase(reply.status)}"]
        headers = {"Content-Type": "application/json", **reply.headers}
        if not reply.endless:
            headers["Content-Length"] = str(len(reply.body))
        if close:
            headers["Connection"] = "close"
        head += [f"{name}: {value}" for name, value in headers.items()]
        front = ("\r\n".join(head) + "\r\n\r\n").encode("latin-1")
        if reply.delay or reply.drip or reply.drip_headers or reply.endless:
            self._busy = True
            self._task = asyncio.ensure_future(self._slowly(front, reply, close=close))
            return
        self._transport.write(front + (reply.body[: len(reply.body) // 2] if reply.truncate else reply.body))
        if close:
            self._transport.close()

    async def _slowly(self, front: bytes, reply: Reply, *, close: bool) -> None:
        await asyncio.sleep(reply.delay)
        if reply.cut:
            self._transport.abort()
            return
        body = reply.body[: len(reply.body) // 2] if reply.truncate else reply.body
        if not (reply.drip or reply.drip_headers):
            self._transport.write(front + body)  # in two writes, the second would wait for a delayed ACK
        else:
            await self._dripping(front, reply.drip_headers)
            await self._dripping(body, reply.drip or reply.drip_headers)
        while reply.endless and not self._transport.is_closing():
            self._transport.write(b" " * 65536)
            await self._writable.wait()
            await asyncio.sleep(0)
        self._busy = False
        if close:
            self._transport.close()
        else:
            self._next()

    async def _dripping(self, data: bytes, gap: float) -> None:
        if not gap:
            self._transport.write(data)
            return
        for at in range(len(data)):
            self._transport.write(data[at : at + 1])
            await asyncio.sleep(gap)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
