"""`Sidecar`: events to a per-agent sidecar, in batches, each event under its own identifier.

The sidecar is asked to answer when the events are on its disk (`?wait=stored`), and only what it then names by
its identifier counts as delivered. What is in its hands but not on its disk yet is sent again: it knows the
identifiers and takes each event once. A refusal is certain where other events of the same request were taken;
where none was, it may as well be a sidecar of another version that understands none of them.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from operator import attrgetter
from pathlib import Path
from typing import Final

import msgspec

from per_agent.destinations.http import Answer, Upstream, check_config, clip
from per_agent.destinations.outcome import Delivered, Halt, Outcome, Refused, Retry
from per_agent.errors import ConfigError, Unavailable
from per_agent.errors import Refused as NotSendable
from per_agent.event import Activity, Event, MeterEvent
from per_agent.settings.address import socket_of

# Bytes of one request, where not one event is longer: under what proxies take by default (nginx: 1 MiB), and
# far under the sidecar's own limit, so that what is too large is mostly never offered.
_MAX_BODY: Final = 1_000_000
_MAX_ANSWER: Final = 4 * 1024 * 1024  # bytes: 500 identifiers, and what is wrong with each
_STORED: Final = (("wait", "stored"),)
_LINES: Final = {"content-type": "application/x-ndjson"}
_OVER_SOCKET: Final = "http://localhost"  # the name in `Host`, which nobody asks for on a Unix socket
_TROUBLES: Final = frozenset({Retry, Halt})
_PASSTHROUGH: Final = 6  # timeouts that a passed on call may take: a report may be megabytes long

_ADVICE: Final = {
    401: "the sidecar's token is missing or wrong: it is `token` in its settings, else in its file sidecar.token",
    403: "something in front of the sidecar refuses: look at `url`, and at the proxy if there is one",
    404: "nothing takes events at this address: look at `url`, and at the sidecar's version",
    421: "the sidecar does not go by this name: add the name to `hosts` in its settings",
}


class _Rejected(msgspec.Struct, frozen=True):
    position: int
    errors: dict[str, str]


class _Document(msgspec.Struct, frozen=True):
    """What a sidecar answers: for each event its identifier, or null where it did not take it."""

    ids: tuple[str | None, ...] = ()
    stored: bool = False
    rejected: tuple[_Rejected, ...] = ()


class _ActivityRecord(msgspec.Struct, frozen=True, tag_field="type", tag="activity", gc=False):
    """As `Activity.as_record`, and encoded in a third of the time."""

    id: str
    billing_id: str
    user_id: str
    activity_type_id: str
    at: float


_encode_lines = msgspec.json.Encoder(decimal_format="number").encode_lines
_decode = msgspec.json.Decoder(_Document).decode
_id_of = attrgetter("id")


class Sidecar:
    """A sidecar at *address*: `unix:/path` of its socket, or `http://host:port`, where *token* is asked for.

    *timeout* is in seconds, for one request. A batch mostly takes one, and at worst, where the sidecar takes
    only short ones, one for each event and twenty more. Raises `ConfigError`, which quotes no token.
    """

    takes: frozenset[type[Event]] = frozenset({Activity, MeterEvent})
    batch: int = 500
    # Each event takes its time along, so the sidecar tells what reaches its own upstreams late.
    counts_on_arrival: bool = False
    livemode: bool | None = None
    """The mode is the sidecar's to choose, for events and for calls that name none themselves."""

    def __init__(
        self,
        address: str = "unix:/run/per-agent/agent.sock",
        token: str | None = None,
        *,
        name: str = "sidecar",
        timeout: float = 10.0,
        concurrency: int = 2,
    ) -> None:
        socket = _checked(name, address, token, timeout, concurrency)
        url, path = (address, None) if socket is None else (_OVER_SOCKET, str(socket))
        self.name = name
        self.address = address
        self.concurrency = concurrency
        self._upstream = Upstream(
            name, url, token, timeout=timeout, concurrency=concurrency, socket_path=path
        )
        self.management = Upstream(
            name,
            url,
            token,
            timeout=timeout,
            concurrency=concurrency,
            total=timeout * _PASSTHROUGH,
            socket_path=path,
        )
        """For reports, meters and lists, with connections of its own: they take none from the senders."""
        self.reporting: Upstream | None = self.management

    def __repr__(self) -> str:
        return f"Sidecar({self.address!r}, name={self.name!r})"

    def authorize(self, token: str | None, *, timeout: float) -> None:
        """Go on with another token and bound; exchanges under way end as they began.

        Raises `ConfigError`, and then nothing has changed.
        """
        _checked(self.name, self.address, token, timeout, self.concurrency)
        self._upstream.authorize(token, timeout=timeout)
        self.management.authorize(token, timeout=timeout, total=timeout * _PASSTHROUGH)

    def open(self, data_dir: Path) -> None:
        """Nothing to get ready: connections are made by the first request of each process."""

    def send(self, events: Sequence[Event]) -> Sequence[Outcome]:
        """Hand *events* over, in as few requests as their length allows.

        After an answer that is trouble for all, the rest is not offered and has the same outcome, but that it was
        not sent.
        """
        lines = _encode_lines(map(_record, events)).splitlines()
        outcomes: list[Outcome] = []
        longest = _MAX_BODY
        while len(outcomes) < len(lines):
            begin = len(outcomes)
            end = _fitting(lines, begin, longest)
            body = b"\n".join(lines[begin:end])
            answer = self._ask(body)
            if isinstance(answer, Answer) and answer.status == 413 and end - begin > 1:
                longest = len(body) // 2  # down to one event in each request
                continue
            said: list[Outcome]
            if isinstance(answer, Retry | Halt):
                said = [answer] * (end - begin)
            else:
                said = self._judge(answer, events[begin:end])
            outcomes += said
            if not _TROUBLES.isdisjoint(map(type, said)):
                trouble = next(each for each in said if isinstance(each, Retry | Halt))
                outcomes += [_not_offered(trouble)] * (len(lines) - len(outcomes))
        return outcomes

    def _ask(self, body: bytes) -> Answer | Retry | Halt:
        try:
            return self._upstream.ask("POST", "/v1/events", _STORED, body, headers=_LINES, limit=_MAX_ANSWER)
        except Unavailable as error:
            return Retry(error.words)
        except NotSendable as error:
            return Halt(error.words)

    # What the answer means

    def _judge(self, answer: Answer, events: Sequence[Event]) -> list[Outcome]:
        """For each of *events* its outcome."""
        told = _told(answer, events)
        if answer.status == 202 and told is not None and told.stored and told.ids and None not in told.ids:
            return [Delivered()] * len(events)  # nearly always
        reason = self._upstream.reason(answer)
        if answer.is_passing:
            return self._by_position(answer, told or _Document(), events, Retry(reason, answer.retry_after))
        if answer.status in (202, 207) and told is not None and told.ids:
            unstored = Halt(f"accepted and not stored, so something on the way drops ?wait=stored: {reason}")
            return self._by_position(answer, told, events, Retry(reason) if told.stored else unstored)
        if answer.status == 400 and told is not None and told.rejected:
            return self._by_position(answer, told, events, Retry(reason))
        if answer.status == 413:
            words = (
                f"the event alone is longer than the sidecar takes, see `max_body` in its settings: {reason}"
            )
            return [Refused(words, certain=False)]
        return [Halt(f"{_advice(answer.status)}: {reason}")] * len(events)

    def _by_position(
        self, answer: Answer, told: _Document, events: Sequence[Event], otherwise: Retry | Halt
    ) -> list[Outcome]:
        outcomes: list[Outcome] = [otherwise] * len(events)
        if told.stored:
            for at, identifier in enumerate(told.ids):
                if identifier is not None:
                    outcomes[at] = Delivered()
        certain = Delivered() in outcomes
        for one in told.rejected:
            words = "; ".join(f"{field}: {problem}" for field, problem in one.errors.items())
            said = clip(self._upstream.hide(words)) or "no reason was given"
            outcomes[one.position] = Refused(f"HTTP {answer.status}: {said}", certain=certain)
        return outcomes

    def probe(self, key: str) -> bool:  # noqa: ARG002  (the protocol's own parameter)
        """True: what waits for a meter waits at the sidecar, so what waits here may go on."""
        return True

    def parking_keys(self, event: Event) -> Sequence[str]:  # noqa: ARG002  (the protocol's own parameter)
        """None: a sidecar takes what its own upstreams do not take yet."""
        return ()

    def close(self) -> None:
        self._upstream.close()
        self.management.close()


def _checked(name: str, address: object, token: object, timeout: object, concurrency: object) -> Path | None:
    """The socket in *address*, None where it is a URL. Raises `ConfigError` with every problem named."""
    problems: list[str] = []
    socket = None
    try:
        if not isinstance(address, str):
            raise ConfigError(f"must be text, not {type(address).__name__}")  # noqa: TRY301
        socket = socket_of(address)
    except ConfigError as error:
        problems += (f"{name}: address: {problem}" for problem in error.problems)
    secrets = {} if token is None else {"token": token}
    try:
        check_config(name, _OVER_SOCKET if problems or socket else address, secrets, timeout, concurrency)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return socket


def _not_offered(trouble: Retry | Halt) -> Retry | Halt:
    """What *trouble* of a request means for the events after it."""
    if isinstance(trouble, Halt):
        return trouble
    return Retry(f"not sent: events before it met trouble: {trouble.reason}", trouble.after)


def _fitting(lines: Sequence[bytes], begin: int, longest: int) -> int:
    """Where a request must end that begins with line *begin* and is *longest* bytes at most; one line always fits."""
    lengths = accumulate(map(len, lines[begin:]), lambda length, line: length + 1 + line)
    return begin + max(1, bisect_right(list(lengths), longest))


def _record(event: Event) -> object:
    """What is encoded as *event*'s record."""
    if type(event) is not Activity:
        return event.as_record()
    return _ActivityRecord(event.id, event.billing_id, event.user_id, event.activity_type_id, event.at)


def _told(answer: Answer, events: Sequence[Event]) -> _Document | None:
    """What the sidecar says of *events*; None where it says nothing, or speaks of others: then nothing is believed."""
    if answer.overrun:
        return None
    try:
        told = _decode(answer.body)
    except (ValueError, RecursionError):
        return None
    if told.ids and len(told.ids) != len(events):
        return None
    sent = tuple(map(_id_of, events))
    if told.ids != sent and any(one not in (None, each) for one, each in zip(told.ids, sent, strict=False)):
        return None
    for one in told.rejected:
        if not 0 <= one.position < len(events) or (told.ids and told.ids[one.position] is not None):
            return None
    return told


def _advice(status: int) -> str:
    if 300 <= status < 400:
        return "redirected: `url` must be the sidecar's own address"
    return _ADVICE.get(status, "what answered is not a sidecar, or one of another version: look at `url`")
