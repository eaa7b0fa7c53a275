"""A request's body, bounded in every direction: as it comes, and as it unpacks."""

import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

from per_agent.sidecar.problems import Problem

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_GZIP: Final = 16 + zlib.MAX_WBITS
_MEMBERS: Final = 200  # of a gzip body; 8 MiB in blocks of 64 KiB are 128
_PIECE: Final = 16 * 1024  # bytes that are unpacked at once


class Disconnected(Exception):
    """The client went away before its request was whole: nothing was accepted, and nobody is there to be told."""


async def read(receive: Receive, given: Mapping[bytes, bytes], limit: int) -> bytes:
    """The whole body, unpacked where it is gzip.

    Raises `Problem`: 413 when it has, or unpacks to, more than *limit* bytes; 415 for another encoding; 400 for
    broken gzip. Raises `Disconnected` when it never becomes whole.
    """
    encoding = given.get(b"content-encoding", b"").strip().lower()
    if encoding not in (b"", b"identity", b"gzip", b"x-gzip"):
        raise Problem(415, "of content encodings, gzip is understood", headers={"accept-encoding": "gzip"})
    length = given.get(b"content-length")
    if length is not None and int(length) > limit:  # the parser takes digits only
        raise too_large(limit)
    message = await receive()
    body: bytes = message.get("body", b"")
    if message["type"] == "http.disconnect":
        raise Disconnected
    if message.get("more_body"):
        body = await _rest(receive, bytearray(body), limit)
    if len(body) > limit:
        raise too_large(limit)
    return body if encoding in (b"", b"identity") else _unpack(body, limit)


def too_large(limit: int) -> Problem:
    return Problem(413, f"the body is too large: at most {limit} bytes are taken; send several smaller ones")


def bounded(receive: Receive, limit: int) -> Receive:
    """*receive*, but it raises `Problem` 413 once the body has come to more than *limit* bytes."""
    came = 0

    async def receive_bounded() -> MutableMapping[str, Any]:
        nonlocal came
        message = await receive()
        came += len(message.get("body", b""))
        if came > limit:
            raise too_large(limit)
        return message

    return receive_bounded


async def _rest(receive: Receive, body: bytearray, limit: int) -> bytes:
    more = True
    while more:
        if len(body) > limit:
            raise too_large(limit)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(body)


def _unpack(packed: bytes, limit: int) -> bytes:
    """What *packed* holds, of one gzip member or several. Never makes more than *limit* bytes of it."""
    unpacked = bytearray()
    at = 0
    for _ in range(_MEMBERS + 1):
        if at == len(packed):
            return bytes(unpacked)
        member = zlib.decompressobj(_GZIP)
        while not member.eof:
            # In pieces: what follows a member is copied, and the rest of the whole would be, for each of many.
            piece = packed[at : at + _PIECE]
            if not piece:
                raise Problem(400, "the gzip body ends too early")
            try:
                unpacked += member.decompress(piece, limit + 1 - len(unpacked))
            except zlib.error:
                raise Problem(400, "the body is not gzip, though its content-encoding says so") from None
            if len(unpacked) > limit:
                raise too_large(limit)
            at += len(piece) - len(member.unused_data)
    raise Problem(400, f"the gzip body has more than {_MEMBERS} members")
