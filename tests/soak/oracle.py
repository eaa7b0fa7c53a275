"""The upstream that knows: Per and Payment Kit that fail on purpose and write down whatever they acted on.

Each line of the score is written before its answer leaves, so that it survives SIGKILL: `{"k": "m"}` a stored
meter event and `{"k": "a"}` a counted activity, with the name, the digest of its content, its time and its
identifier; `{"x": …}` something that it did on purpose or saw.

`POST /__weather__` sets what goes wrong, as probabilities: `{"per": {"429": 0.2}, "payment_kit": {…}}`; `healed`
true lets poison pass. The troubles are `TROUBLES`. Half of those that lose an answer lose it after acting.
"""

import argparse
import asyncio
import os
import random
from pathlib import Path
from typing import Any, Final

import msgspec
from upstream import UpstreamServer, serve
from upstream_books import Books
from upstream_wire import Reply, Request

from soak import plan

ABSURD: Final = ("0", "1", "86400", "-3", "soon", "1e9", "Wed, 21 Oct 2099 07:28:00 GMT", "9" * 50)
TROUBLES: Final = (
    "500", "503", "429", "401", "cut before", "cut after", "silent", "slow", "truncated", "page",
)  # fmt: skip
_PER: Final = "/activities.add"


class Oracle(Books):
    """Answers as `Books` does, or badly; keeps identifiers, and nothing else of what it acted on."""

    def __init__(self, file: Path, seed: int) -> None:
        self._seed = seed
        self._draw = random.Random(f"{seed}/{os.getpid()}")
        self._weather: dict[str, dict[str, float]] = {}
        self._healed = False
        super().__init__(file)

    def _forget(self) -> None:
        super()._forget()
        self.offered = _Nobody()  # type: ignore[assignment]

    def answer(self, request: Request) -> Reply:
        if request.path == "/__weather__":
            command = msgspec.json.decode(request.body)
            self._weather = command.get("weather", self._weather)
            self._healed = command.get("healed", self._healed)
            return Reply(200, b"{}")
        reply = super().answer(request)
        self.last.clear()
        return reply

    # What it acts on

    def _count(self, record: dict[str, Any], *, keep: bool = True) -> None:
        line = self._line(record) if keep else record
        if keep:
            self._write(line)
        if line.get("k") == "m":
            self.meter_events[line["i"]] = {}

    def _line(self, record: dict[str, Any]) -> dict[str, Any]:
        if record["kind"] == "activity":
            fields = {"billing": record["billingId"], "type": record["activityTypeId"]}
            return {"k": "a", "n": record["userId"], "d": plan.digest(fields)}
        payload = record["payload"]
        fields = {
            "event_name": record["event_name"],
            "customer": payload["customer_id"],
            "subscription": payload.get("subscription_id"),
            "value": payload["value"],
            "metadata": record.get("metadata"),
            "source_data": record.get("source_data"),
            "livemode": record["livemode"],
        }
        name = (record.get("metadata") or {}).get("name", "?")
        identifier, at = record["identifier"], record["timestamp"]
        return {"k": "m", "n": name, "i": identifier, "t": at, "d": plan.digest(fields)}

    def _write(self, line: dict[str, Any]) -> None:
        assert self._fd is not None
        os.write(self._fd, msgspec.json.encode(line) + b"\n")

    def _deed(self, what: str) -> None:
        self._write({"x": what})

    # What it refuses

    def _add_activity(self, request: Request) -> Reply:
        if self._is_poison(request.query.get("userId", "")):
            self._deed("poison refused by Per")
            return _json(200, {"ok": False, "error": "user_unwanted"})
        return super()._add_activity(request)

    def _add_meter_event(self, body: dict[str, Any], live: bool) -> Reply:
        if self._is_poison((body.get("metadata") or {}).get("name", "")):
            self._deed("poison refused by Payment Kit")
            return _json(400, {"error": '"payload.value" must be a positive number'})
        before = self.duplicates
        reply = super()._add_meter_event(body, live)
        if self.duplicates > before:
            self._deed("duplicate")
        elif reply.status >= 400:
            self._deed("meter asleep")
        return reply

    def _is_poison(self, name: str) -> bool:
        named = plan.NAME.fullmatch(name) is not None
        return named and not self._healed and plan.event(self._seed, name).poison

    # How it fails

    def _ruled(self, request: Request) -> Reply:
        trouble = self._trouble(request)
        if trouble is None:
            return self._served(request)
        self._deed(trouble)
        acts = trouble in ("cut after", "slow", "truncated") or (
            trouble in ("500", "503", "silent", "page") and self._draw.random() < 0.5
        )
        reply = self._served(request) if acts else Reply(500)
        if acts and trouble != "slow" and reply.status < 300 and b'"ok":false' not in reply.body:
            self._deed("ambiguous")
        return self._spoilt(trouble, reply)

    def _trouble(self, request: Request) -> str | None:
        is_per = request.path.endswith(_PER)
        is_event = request.method == "POST" and request.path.endswith("/api/meter-events")
        if not (is_per or is_event):
            return None
        at = self._draw.random()
        for trouble, odds in self._weather.get("per" if is_per else "payment_kit", {}).items():
            at -= odds
            if at < 0:
                return trouble
        return None

    def _spoilt(self, trouble: str, reply: Reply) -> Reply:
        match trouble:
            case "500" | "503":
                return Reply(int(trouble), b'{"error":"down for a moment"}')
            case "429":
                return Reply(429, b"{}", {"Retry-After": self._draw.choice(ABSURD)})
            case "401":
                return Reply(401, b'{"ok":false,"message":"invalid_auth_token"}')
            case "page":
                return Reply(200, b"<html><title>Welcome</title></html>", {"Content-Type": "text/html"})
            case "silent":
                reply.delay, reply.cut = 30.0, True
            case "slow":
                reply.delay = self._draw.uniform(0.1, 0.8)
            case "truncated":
                reply.truncate = True
            case _:
                reply.cut = True
        return reply


class OracleServer(UpstreamServer):
    """The oracle's process, from the outside."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder)
        self.program = (str(Path(__file__).parent), "oracle", "--seed", str(seed))

    def weather(self, **command: Any) -> None:
        """See the head of this module."""
        self._ask("POST", "/__weather__", msgspec.json.encode(command).decode())

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)


class _Nobody(dict[str, int]):
    """Counts nothing: what was offered is told from the score, and would fill the memory."""

    def __missing__(self, key: str) -> int:
        return 0

    def __setitem__(self, key: str, value: int) -> None:
        pass


def _json(status: int, value: Any) -> Reply:
    return Reply(status, msgspec.json.encode(value))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--score", type=Path, required=True)
    given = parser.parse_args(arguments)
    asyncio.run(serve("127.0.0.1", given.port, lambda: Oracle(given.score, given.seed)))
