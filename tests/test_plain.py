"""An answer that is read without h11 is read as h11 reads it, and what h11 alone can tell is left to it."""

import h11
import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from per_agent.destinations.http.plain import plain

LINES = [
    b"Content-Type: application/json",
    b"Content-Length: 2",
    b"content-length:2 ",
    b"Content-Length: 02",
    b"Content-Length: 3",
    b"Content-Length: 2, 2",
    b"Content-Length: +2",
    b"Content-Length : 2",
    b"Connection: keep-alive",
    b"Connection: close",
    b"Connection: Keep-Alive, close",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: identity",
    b"Upgrade: h2c",
    b"Retry-After: 1",
    b" folded",
    b"\tfolded: too",
    b"X:",
    b": nameless",
    b"X: \xc3\xa9\x85\xa0",
    b"X: a\x00b",
    b"X: a\rb",
    b"X: a\nContent-Length: 5",
    b"X: a\x0bb",
    b"X Y: z",
    b"nothing",
    b"",
]
STARTS = [
    *(b"HTTP/1.1 %d OK" % status for status in (100, 101, 199, 200, 204, 304, 404, 503, 599, 600)),
    *(
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 ",
        b"HTTP/1.0 200 OK",
        b"HTTP/1.1  200 OK",
        b"HTTP/2 200 OK",
        b"http/1.1 200 OK",
    ),
    *(b"HTTP/1.1 2000 OK", b"HTTP/1.1 200 O\x00K", b"\r\nHTTP/1.1 200 OK", b""),
]
BODIES = [
    b"{}",
    b"{}\r\n",
    b"",
    b"{",
    b"2\r\n{}\r\n0\r\n\r\n",
    b"{}HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
]
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r"])


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """Something like an answer, with whatever is often wrong with one, and now and then a byte changed."""
    said = bytearray(draw(st.sampled_from(STARTS)) + draw(ENDS))
    for line in draw(st.lists(st.sampled_from(LINES), max_size=4)):
        said += line + draw(ENDS)
    said += draw(ENDS) + draw(st.sampled_from(BODIES))
    if draw(st.booleans()):
        said[draw(st.integers(0, len(said) - 1))] = draw(st.integers(0, 255))
    return bytes(said)


def by_h11(came: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes] | None:
    """Status, headers and body, where *came* is one whole answer after which the connection goes on."""
    wire = h11.Connection(h11.CLIENT)
    wire.send(h11.Request(method="GET", target="/", headers=[("host", "")]))
    wire.send(h11.EndOfMessage())
    wire.receive_data(came)
    events = []
    try:
        while (event := wire.next_event()) is not h11.NEED_DATA:
            events.append(event)
            if isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                break
    except h11.ProtocolError:
        return None
    if wire.their_state is not h11.DONE or wire.trailing_data[0] or not isinstance(events[0], h11.Response):
        return None
    body = b"".join(bytes(event.data) for event in events if isinstance(event, h11.Data))
    return events[0].status_code, list(events[0].headers), body


def told(response: httpx.Response) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    return response.status_code, response.headers.raw, b"".join(response.iter_raw())


@given(answers())
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n continued\r\n\r\n{}")
def test_what_is_read_without_h11_is_what_h11_reads(came: bytes) -> None:
    read = plain(came)
    if read is not None:
        assert told(read) == by_h11(came)


@pytest.mark.parametrize("connection", ["", "Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n"])
@pytest.mark.parametrize("start", ["HTTP/1.1 200 OK", "HTTP/1.1 503 Service Unavailable", "HTTP/1.1 429"])
def test_what_services_mostly_answer_needs_no_h11(start: str, connection: str) -> None:
    head = f"{start}\r\nContent-Type: application/json\r\nDate: now\r\n{connection}Content-Length: 11\r\n\r\n"
    came = head.encode() + b'{"ok":true}'
    read = plain(came)
    assert read is not None
    assert told(read) == by_h11(came)


@pytest.mark.parametrize(
    "came",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}}",
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
        b"HTTP/1.1 100 Continue\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_what_is_not_whole_or_not_clear_is_left_to_h11(came: bytes) -> None:
    assert plain(came) is None
