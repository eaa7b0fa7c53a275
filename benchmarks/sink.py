"""A server that takes everything: whatever it is sent is answered well, as each client wants to hear it, and counted.

    python -m benchmarks.sink DELAY        seconds before each answer, or `never`

Prints its port; the same number takes UDP. An event is counted by its user's name, which is in all of them once.
"""

import asyncio
import gzip
import sys
from typing import Any

import msgspec
import uvloop

MARK = b"user-"
"""What each event of a benchmark holds once."""


class _Line(msgspec.Struct):
    id: str


_decode_lines = msgspec.json.Decoder(list[_Line]).decode
_encode = msgspec.json.Encoder().encode


class Connection(asyncio.Protocol):
    seen = 0
    delay: float | None = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._came = bytearray()

    def data_received(self, data: bytes) -> None:
        self._came += data
        while (end := self._came.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._came[:end])
            length = int(_header(head, b"content-length") or 0)
            if len(self._came) < end + 4 + length:
                return
            body = bytes(self._came[end + 4 : end + 4 + length])
            del self._came[: end + 4 + length]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        path = head.split(b" ", 2)[1]
        if path == b"/seen":
            self._transport.write(_response(b"%d" % Connection.seen))
            return
        if _header(head, b"content-encoding") == b"gzip":
            body = gzip.decompress(body)
        Connection.seen += body.count(MARK) + path.count(MARK)
        if self.delay is None:
            return
        answer = _answer_to(path, body)
        if self.delay:
            asyncio.get_running_loop().call_later(self.delay, self._transport.write, answer)
        else:
            self._transport.write(answer)


def _answer_to(path: bytes, body: bytes) -> bytes:
    """What the client of this *path* takes for success."""
    if path.startswith(b"/v1/events"):
        lines = _decode_lines(b"[" + body.replace(b"\n", b",") + b"]")
        return _response(_encode({"ids": [line.id for line in lines], "stored": True}), b"202 Accepted")
    if path.startswith(b"/v1/logs"):
        return _response(b"")
    return _response(b'{"ok": true, "status": 1, "success": true}')


def _response(body: bytes, status: bytes = b"200 OK") -> bytes:
    kind = b"application/json" if body else b"application/x-protobuf"
    length = len(body)
    return b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (status, kind, length, body)


def _header(head: bytes, name: bytes) -> bytes:
    _, found, rest = head.lower().partition(b"\r\n" + name + b":")
    return rest.partition(b"\r\n")[0].strip() if found else b""


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", port))
    print(port, flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    Connection.delay = None if sys.argv[1] == "never" else float(sys.argv[1])
    uvloop.run(_serve())
