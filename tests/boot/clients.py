"""Clients of a sidecar that runs as a service: single requests, and steady streams that note what they were told."""

import http.client
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Self

SOCKET = "/run/per-agent/agent.sock"
PORT = 4737
BROKEN = (ConnectionError, http.client.HTTPException, TimeoutError)


class _Unix(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(SOCKET)


def unix(timeout: float = 60) -> http.client.HTTPConnection:
    return _Unix("localhost", timeout=timeout)


def tcp(timeout: float = 60) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", PORT, timeout=timeout)


def call(connection, method: str, path: str, document: object = None, token: str | None = None):
    """Status and JSON of one request, on *connection*, which stays open where the sidecar lets it."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    connection.request(method, path, None if document is None else json.dumps(document), headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read() or b"null")


def once(connection, *arguments, **fields):
    """As `call`, on a connection of its own."""
    try:
        return call(connection, *arguments, **fields)
    finally:
        connection.close()


def activity(user: str) -> dict[str, str]:
    return {"billing_id": "acme", "user_id": user, "activity_type_id": "active"}


class Stream:
    """Clients that send events without a pause until `stop`: each with a connection per request, or with one for all.

    Attributes:
        stored: the users whose event was answered as stored.
        failed: what was refused or lost, one sentence each.
        cut: requests whose connection ended without an answer. On a connection that was used before, that is how a
            server ends one that was idle; as every HTTP client does, such a request is sent again, once.
        broke: connections that could not be made.
    """

    def __init__(self, name: str, token: str) -> None:
        self._name = name
        self._token = token
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.stored: list[str] = []
        self.failed: list[str] = []
        self.broke: list[str] = []
        self.cut = 0
        kinds: list[tuple[Callable[[], http.client.HTTPConnection], Callable[..., None]]] = [
            (make, send) for make in (unix, tcp) for send in (self._afresh, self._on_one) for _ in range(2)
        ]
        self._threads = [
            threading.Thread(target=send, args=(make, f"{name}-{n}"), daemon=True)
            for n, (make, send) in enumerate(kinds)
        ]

    def __enter__(self) -> Self:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for each in self._threads:
            each.join(120)
            if each.is_alive():
                self.failed.append(f"{each.name} hangs")

    def more(self, events: int, timeout: float = 60) -> None:
        """Return when *events* more were answered as stored, or nothing goes on."""
        enough = len(self.stored) + events
        deadline = time.monotonic() + timeout
        while len(self.stored) < enough and time.monotonic() < deadline:
            time.sleep(0.02)

    def _afresh(self, make, name: str) -> None:
        for user in self._users(name):
            connection = make()
            if self._connected(connection):
                try:
                    self._send(connection, user)
                except BROKEN as error:
                    self._lost(user, error)
            connection.close()

    def _on_one(self, make, name: str) -> None:
        connection = make()
        for user in self._users(name):
            reused = connection.sock is not None
            try:
                if not reused and not self._connected(connection):
                    continue
                self._send(connection, user)
            except BROKEN as error:
                connection.close()
                if not reused:
                    self._lost(user, error)
                    continue
                with self._lock:
                    self.cut += 1
                if self._connected(connection):
                    try:
                        self._send(connection, user)
                    except BROKEN as again:
                        self._lost(user, again)
                        connection.close()
        connection.close()

    def _users(self, name: str):
        for n in itertools.count():
            if self._over.is_set():
                return
            yield f"{name}-{n}"

    def _connected(self, connection) -> bool:
        try:
            connection.connect()
        except OSError as error:
            with self._lock:
                self.broke.append(repr(error))
            return False
        return True

    def _send(self, connection, user: str) -> None:
        event = activity(user) | {"id": f"id-{user}"}
        status, answer = call(connection, "POST", "/v1/events?wait=stored", event, self._token)
        with self._lock:
            if status == 202 and answer["stored"]:
                self.stored.append(user)
            else:
                self.failed.append(f"{user}: {status} {answer}")

    def _lost(self, user: str, error: BaseException) -> None:
        with self._lock:
            self.failed.append(f"{user}: {error!r}")
