"""A real upstream for tests: Per and Payment Kit on one port, in a process of its own, that keeps score.

From a test, by the fixture `upstream` (see conftest.py), or by hand::

    with UpstreamServer(tmp_path) as upstream:
        Per("token", url=upstream.url); PaymentKit(upstream.url, "key")
        upstream.rule(status=503, for_seconds=2)          # what is asked next gets trouble
        upstream.kill(); upstream.start()                 # SIGKILL; same port again, the score is kept
        upstream.score().activities                       # what was counted, in order, repeats included

As a program: `python tests/upstream.py [--port N] [--score FILE] [--host H]`. Its first line on stdout is
`{"port": N}`. It ends with its stdin, so it cannot outlive the test that started it.

Steering is `POST /__control__` with a JSON object: `reset` (true: forget all, the score included), `rules`
(replaces them), `rule` (adds one), `settings` (`upstream_books.SETTINGS` lists them). `GET /__score__`
answers the score. Neither is counted as a request. Rules and settings end with the process, the score does not.

A rule says which requests it takes; the first rule that takes a request wins:

- `path`: a pattern such as "/activities.add" or "*/meter-events"; `method`
- `users`: user ids (poison); `events`, `customers`: of posted meter events
- `for_seconds`: from now on; `count`: only the next N; `every`: only each Nth

and what happens to them:

- `status`, `headers`, `body` (JSON value or text); `html`: true; `ok_false`: an error name; `redirect`: a URL.
  The event is not counted, unless `counts` is true
- `cut`: "before" (not counted, connection reset) or "after" (counted, then reset without an answer)
- `delay`: seconds before the answer; `truncate`: true (counted, half of the body, then closed)
- `capacity`: so many at once, for `delay` seconds each; further ones get 503
- `drip`, `drip_headers`: seconds between bytes; `endless`: true (a body without an end)
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class Score:
    """What the upstream saw since its last reset; `activities` and `meter_events` also over its restarts.

    Attributes:
        requests: how many there were, however they ended.
        statuses: answers by status, "cut" for those cut off.
        connections: how many were opened.
        activities: counted calls in their order: billingId, userId, activityTypeId, at, n. Repeats included.
        meter_events: stored events in their order, each once, with the posted fields, livemode, id, at, n.
        duplicates: how often an identifier came again.
        offered: how often each event was understood, by "billing/user/type" or identifier.
        last: the last 2,000 requests: at, method, path, target, query, headers, body, status.
    """

    requests: int
    statuses: dict[str, int]
    connections: int
    activities: list[dict[str, Any]]
    meter_events: list[dict[str, Any]]
    duplicates: int
    offered: dict[str, int]
    last: list[dict[str, Any]]

    @property
    def users(self) -> list[str]:
        """The user ids of the counted activities, in order, repeats included."""
        return [one["userId"] for one in self.activities]

    @property
    def identifiers(self) -> list[str]:
        """The identifiers of the stored meter events, in order."""
        return [one["identifier"] for one in self.meter_events]


class UpstreamServer:
    """The upstream's process, from the outside. `start` after `stop` or `kill` takes the same port again."""

    program: Sequence[str] = (__file__,)

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.port = port
        self._score = Path(folder) / "upstream-score.ndjson"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Return when it is listening."""
        if self.running:
            return self
        command = [sys.executable, *self.program, "--port", str(self.port), "--score", str(self._score)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.kill()
            raise RuntimeError("the test upstream did not start")
        self.port = json.loads(line)["port"]
        return self

    def stop(self) -> None:
        """End it by SIGTERM. Its port refuses connections from here on."""
        self._end("terminate")

    def kill(self) -> None:
        """End it by SIGKILL: connections are reset, answers under way are lost, the score is not."""
        self._end("kill")

    def _end(self, how: str) -> None:
        if self._process is not None:
            getattr(self._process, how)()
            self._process.wait(10)
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()
            self._process = None

    def control(self, **command: Any) -> None:
        """Steer it; see the head of this module."""
        self._ask("POST", "/__control__", json.dumps(command))

    def rule(self, **rule: Any) -> None:
        """Add one rule."""
        self.control(rule=rule)

    def clear_rules(self) -> None:
        self.control(rules=[])

    def settings(self, **settings: Any) -> None:
        self.control(settings=settings)

    def reset(self) -> None:
        """Forget everything: rules, settings and score."""
        self.control(reset=True)

    def score(self) -> Score:
        return Score(**self._ask("GET", "/__score__"))

    def _ask(self, method: str, path: str, body: str | None = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {"Connection": "close"})
            response = connection.getresponse()
            answer = response.read()
            if response.status != 200:
                raise ValueError(f"{path} answered {response.status}: {answer!r}")
            return json.loads(answer)
        finally:
            connection.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


async def serve(host: str, port: int, make_books: Callable[[], Any]) -> None:
    from upstream_wire import Connection  # noqa: PLC0415  (the client side, in every test, needs none of it)

    books = make_books()

    def opened() -> None:
        books.connections += 1

    loop = asyncio.get_running_loop()
    listener = socket.create_server((host, port), backlog=1024)
    await loop.create_server(lambda: Connection(books.answer, opened), sock=listener)
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    orphaned = asyncio.Event()

    def starter_left() -> None:
        if not os.read(0, 1):
            orphaned.set()

    with contextlib.suppress(PermissionError):  # a file or /dev/null cannot be watched: then it is not
        loop.add_reader(0, starter_left)
    await orphaned.wait()


def made(score: Path | None) -> Any:
    from upstream_books import Books  # noqa: PLC0415  (as above)

    return Books(score)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Per and Payment Kit for tests; keeps score.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--score", type=Path)
    given = parser.parse_args()
    asyncio.run(serve(given.host, given.port, lambda: made(given.score)))
