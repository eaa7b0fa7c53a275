"""What tests of abuse share: bytes on a wire, a sidecar that must be unharmed by them, and its memory."""

import json
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sidecar_process import SidecarProcess
from waiting import until

ACTIVITY = b'{"billing_id":"acme","user_id":"u-17","activity_type_id":"active-users"}'
MIB = 2**20


def head(
    sidecar: SidecarProcess, line: bytes, *fields: bytes, host: bytes = b"localhost", version: bytes = b"1.1"
) -> bytes:
    """A request's head with the right token."""
    known = (b"Host: " + host, b"Authorization: Bearer " + sidecar.token.encode())
    return b"\r\n".join((line + b" HTTP/" + version, *known, *fields, b"", b""))


def post(
    sidecar: SidecarProcess, *fields: bytes, body: bytes = ACTIVITY, path: bytes = b"/v1/events"
) -> bytes:
    """One event with the right token, and with its length unless *fields* say how long it is."""
    told = any(field.lower().startswith((b"content-length", b"transfer-encoding")) for field in fields)
    length = () if told else (b"Content-Length: %d" % len(body),)
    return head(sidecar, b"POST " + path, *fields, *length) + body


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))


def statuses(answers: bytes) -> list[int]:
    """The statuses of the answers one after another, found by the lengths of their bodies."""
    found = []
    while answers:
        top, _, rest = answers.partition(b"\r\n\r\n")
        found.append(int(top.split(b" ")[1]))
        lines = [line.lower() for line in top.split(b"\r\n")]
        length = next((line.split(b":")[1] for line in lines if line.startswith(b"content-length:")), b"0")
        answers = rest[int(length) :]
    return found


def offer(connection: socket.socket, data: bytes, patience: float = 30.0) -> bytes:
    """Send *data* until it is all sent, or until there is an answer; then the answer, to the connection's end."""
    deadline = time.monotonic() + patience
    left = memoryview(data)
    connection.setblocking(False)
    try:
        while left:
            wait = deadline - time.monotonic()
            assert wait > 0, "neither taken nor answered"
            readable, writable, _ = select.select([connection], [connection], [], wait)
            if readable:
                break
            if writable:
                left = left[connection.send(left[:65536]) :]
    except (BrokenPipeError, ConnectionResetError):
        pass  # the answer may be there all the same
    return rest_of(connection, deadline - time.monotonic())


def rest_of(connection: socket.socket, patience: float = 30.0) -> bytes:
    """All that comes until the other side ends the connection, which must be within *patience* seconds."""
    connection.settimeout(patience)
    got = b""
    try:
        while more := connection.recv(65536):
            got += more
    except ConnectionResetError:
        pass
    return got


def ask(sidecar: SidecarProcess, data: bytes, *, unix: bool = False) -> bytes:
    """What is answered to *data* on a connection of its own, up to its end."""
    with sidecar.raw(unix=unix) as connection:
        return offer(connection, data)


@contextmanager
def unharmed(sidecar: SidecarProcess) -> Iterator[None]:
    """Afterwards a good request on a new connection works, on both listeners, and the log tells nothing bad."""
    yield
    good = post(sidecar, b"Connection: close", path=b"/v1/events?wait=stored")
    for unix in (False, True):
        answer = ask(sidecar, good, unix=unix)
        assert statuses(answer) == [202], answer
    said = sidecar.said()
    assert "Traceback" not in said
    assert "defect" not in said
    assert sidecar.token not in said


@contextmanager
def accepts(sidecar: SidecarProcess, events: int) -> Iterator[None]:
    """Exactly so many *events* are accepted meanwhile, and the books balance."""
    before = _accepted(sidecar)
    yield
    now = _accepted(sidecar)
    assert now - before == events, f"{before} accepted, then {now}"


def _accepted(sidecar: SidecarProcess) -> int:
    """As the books say once all is delivered: what is being stored while they are read is in them twice."""

    def delivered():
        answer = ask(sidecar, head(sidecar, b"GET /v1/books", b"Connection: close"), unix=True)
        books = json.loads(answer.partition(b"\r\n\r\n")[2])["destinations"]["ledger"]
        assert books["balanced"], books
        return books["pending"] == 0 and books

    return int(until(delivered)["accepted"])


class Memory:
    """The memory of a process, as the kernel counts it."""

    def __init__(self, sidecar: SidecarProcess) -> None:
        assert sidecar.process is not None
        self._proc = Path(f"/proc/{sidecar.process.pid}")
        if not (self._proc / "clear_refs").exists():
            pytest.skip("the kernel does not tell the memory of a process here")

    @contextmanager
    def grows_at_most(self, allowed: int) -> Iterator[None]:
        """At no moment does it take more than *allowed* bytes beyond what it takes now."""
        (self._proc / "clear_refs").write_text("5")  # forgets the highest that there was
        before = self._told("VmRSS")
        yield
        assert self._told("VmHWM") - before <= allowed

    def _told(self, name: str) -> int:
        lines = (self._proc / "status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024
