"""Upstreams that misbehave in every way that a network, a proxy or a bad day knows: nothing is lost, doubled or buried."""

import gzip
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sidecar_double import SidecarDouble
from unruly import Exchange, Fault, UnrulyProxy, eagerly
from upstream import UpstreamServer
from waiting import until

from per_agent import Agent, DeliverySettings, PaymentKit, Per
from per_agent.books import Books
from per_agent.destinations.sidecar import Sidecar

QUICK = DeliverySettings(
    backoff_initial=0.02, backoff_max=0.1, retry_after_max=0.1, probe_interval=0.05, refusal_attempts=3
)
NAMES = ("per", "payment_kit", "sidecar")
OK = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{"ok":true}'


class Stage:
    """An agent with every kind of HTTP destination, each behind an unruly proxy, and what their upstreams counted."""

    def __init__(self, folder: Path, upstream: UpstreamServer, double: SidecarDouble) -> None:
        self.folder = folder
        self.upstream = upstream
        self.double = double
        self.proxies = {
            "per": UnrulyProxy(upstream.port),
            "payment_kit": UnrulyProxy(upstream.port),
            "sidecar": UnrulyProxy(double.port),
        }
        self.activities: list[str] = []
        self.meter_events: list[str] = []
        self._numbers = itertools.count()

    def agent(self, timeout: float = 0.4, scheme: str = "http", **options: Any) -> Agent:
        """An agent on the stage's folder."""
        urls = {name: proxy.url.replace("http", scheme, 1) for name, proxy in self.proxies.items()}
        destinations = [
            Per("token-1", "token-2", urls["per"], timeout=timeout),
            PaymentKit(urls["payment_kit"], "key-1", timeout=timeout),
            Sidecar(urls["sidecar"], "sidecar-token-1", timeout=timeout),
        ]
        return Agent(self.folder / "data", destinations, **({"delivery": QUICK} | options))

    def fault(self, fault: Fault | None) -> None:
        """From now on every upstream has this *fault*, or none."""
        for proxy in self.proxies.values():
            proxy.fault = fault

    def record(self, agent: Agent, count: int) -> None:
        """Record *count* of each kind of event."""
        for n in itertools.islice(self._numbers, count):
            agent.add_activity("acme", f"u-{n}", "active")
            self.activities.append(f"u-{n}")
            self.meter_events.append(agent.add_meter_event("api.calls", customer_id="cus-1", value=1).id)

    def met(self, times: int = 2) -> bool:
        """Whether each upstream's fault was met so often."""
        return all(proxy.met >= times for proxy in self.proxies.values())

    def check(self, agent: Agent) -> None:
        """All that was recorded arrived, once where that can be told, and the books say so."""
        recorded = len(self.activities)
        expected = {"per": recorded, "payment_kit": recorded, "sidecar": 2 * recorded}
        assert agent.books() == {name: Books(count, count) for name, count in expected.items()}
        score = self.upstream.score()
        assert set(score.users) == set(self.activities)
        assert Counter(score.identifiers) == Counter(self.meter_events)
        assert set(score.offered) == {*self.meter_events, *(f"acme/{user}/active" for user in self.activities)}
        assert len(self.double.events) == 2 * recorded
        assert set(self.meter_events) <= self.double.events.keys()


@pytest.fixture
def stage(tmp_path: Path, upstream: UpstreamServer) -> Iterator[Stage]:
    with SidecarDouble(tmp_path) as double, ExitStack() as stack:
        made = Stage(tmp_path, upstream, double)
        for proxy in made.proxies.values():
            stack.enter_context(proxy)
        yield made


# What may be wrong with an answer


def says(*pieces: bytes) -> Fault:
    """Read the request, do not pass it on, say *pieces* and close."""

    def fault(exchange: Exchange) -> bool:
        exchange.request()
        exchange.say(*pieces)
        return False

    return fault


def answers(status: int, body: bytes = b"", *headers: str) -> Fault:
    """An answer with this *status* that is well formed."""
    length = [] if status in (204, 304) or status < 200 else [f"Content-Length: {len(body)}"]
    head = "\r\n".join([f"HTTP/1.1 {status} X", *headers, *length]).encode("latin-1") + b"\r\n\r\n"

    def fault(exchange: Exchange) -> bool:
        exchange.request()
        return exchange.say(head + body)

    return fault


def alters(change: Callable[[bytes], bytes], *, holds: bool = False, closes: bool = True) -> Fault:
    """Pass the request on, and spoil its answer by *change*."""

    def fault(exchange: Exchange) -> bool:
        exchange.say(change(exchange.answer()))
        return exchange.hold() if holds else not closes

    return fault


@eagerly
def reset_at_once(exchange: Exchange) -> bool:
    return exchange.reset()


@eagerly
def closed_at_once(exchange: Exchange) -> bool:
    del exchange
    return False


def reset_before_the_body_is_read(exchange: Exchange) -> bool:
    exchange.head()
    return exchange.reset()


def reset_after_the_request_is_read(exchange: Exchange) -> bool:
    exchange.request()
    return exchange.reset()


def reset_after_it_was_taken(exchange: Exchange) -> bool:
    exchange.answer()
    return exchange.reset()


def silent_after_it_was_taken(exchange: Exchange) -> bool:
    exchange.answer()
    return exchange.hold()


def silent(exchange: Exchange) -> bool:
    exchange.request()
    return exchange.hold()


def answered_twice(exchange: Exchange) -> bool:
    """The first answer comes twice; whoever takes the second for its own is mistaken: nothing more is taken."""
    if exchange.number:
        exchange.request()
        return exchange.reset()
    answer = exchange.answer()
    return exchange.say(answer + answer)


def endless(*endlessly: bytes, first: bytes = b"") -> Fault:
    """Say *first*, and then the same for ever, as fast as it is read."""

    def fault(exchange: Exchange) -> bool:
        exchange.request()
        exchange.say(first)
        while True:
            exchange.say(*endlessly)

    return fault


def dripping(exchange: Exchange) -> bool:
    """A byte at a time, so that no single read is long without one; the answer is true."""
    for byte in exchange.answer():
        exchange.say(bytes([byte]))
        if _left_within(exchange, 0.02):
            return False
    return False


def _left_within(exchange: Exchange, seconds: float) -> bool:
    """Whether the client leaves within *seconds*."""
    exchange.client.settimeout(seconds)
    try:
        return not exchange.client.recv(1)
    except TimeoutError:
        return False


def with_length(change: int) -> Callable[[bytes], bytes]:
    """An answer that promises so many bytes more than it has."""

    def spoil(answer: bytes) -> bytes:
        head, _, body = answer.partition(b"\r\n\r\n")
        return head.replace(b"Content-Length: %d" % len(body), b"Content-Length: %d" % (len(body) + change)) + (
            b"\r\n\r\n" + body
        )

    return spoil


def squeezed(how: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """An answer that is compressed, which nobody asked for."""

    def spoil(answer: bytes) -> bytes:
        body = how(answer.partition(b"\r\n\r\n")[2])
        return b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    return spoil


def half(answer: bytes) -> bytes:
    """The head and half of the body."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n" + body[: len(body) // 2]


PAGE = b"<!DOCTYPE html><title>Log in</title>"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

# The request may have been taken. Those of the first part are known by a timeout alone.
SILENT: dict[str, Fault] = {
    "silent": silent,
    "silent after it was taken": silent_after_it_was_taken,
    "dripping": dripping,
    "a length that is too long, held open": alters(with_length(10), holds=True),
    "for ever to be continued": endless(b"HTTP/1.1 100 Continue\r\n\r\n" * 50),
}
CUT: dict[str, Fault] = {
    "closed at once": closed_at_once,
    "reset before the body is read": reset_before_the_body_is_read,
    "reset after the request is read": reset_after_the_request_is_read,
    "reset after it was taken": reset_after_it_was_taken,
    "half an answer": alters(half),
    "half a head": alters(lambda answer: answer[:20]),
    "a length that is too long": alters(with_length(10)),
    "a length that is none": says(b"HTTP/1.1 200 OK\r\nContent-Length: some\r\n\r\n{}"),
    "a negative length": says(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}"),
    "two lengths": says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", OK.partition(b"\r\n")[2]),
    "chunks without a size": says(CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n"),
    "a chunk that is cut": says(CHUNKED + b'b\r\n{"ok'),
    "not HTTP": says(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "an answer without a head": says(b'{"ok":true}'),
    "a head without an end": endless(b"X-Pad: %s\r\n" % (b"x" * 50_000), first=b"HTTP/1.1 200 OK\r\n"),
    "another protocol": answers(101, b"", "Upgrade: h2c", "Connection: Upgrade"),
    "answered twice": answered_twice,
}
# What answers may be anything, but not the upstream as it should be. Where a name stands alone, all three say so.
Expected = str | tuple[str, str, str]
REFUSED = "refused_uncertain"
ANSWERED: dict[str, tuple[Fault, Expected]] = {
    "an endless answer": (endless(b" " * 50_000, first=b'HTTP/1.1 200 OK\r\n\r\n{"ok":true}'), "halted"),
    "a page": (answers(200, PAGE, "Content-Type: text/html"), "halted"),
    "nothing at all": (answers(200), "halted"),
    "ok, but not quite": (answers(200, b'{"ok":"true"}'), "halted"),
    "ok, with a comma too much": (answers(200, b'{"ok":true,}'), "halted"),
    "no content": (answers(204), "halted"),
    "good gzip": (alters(squeezed(gzip.compress)), "halted"),
    "bad gzip": (alters(squeezed(lambda body: gzip.compress(body)[:15] + b"\xff" * 9)), "halted"),
    "a redirect to itself": (answers(302, b"", "Location: /activities.add"), "halted"),
    "a redirect to a login page": (answers(302, PAGE, "Location: /login"), "halted"),
    "a redirect to nowhere": (answers(308, b"", "Location: javascript:void(0)"), "halted"),
    "a redirect to what is no name": (answers(301, b"", "Location: http://xn--/"), "halted"),
    "not modified": (answers(304), "halted"),
    "a wrong token": (answers(401, b'{"ok":false,"message":"invalid_auth_token"}'), "halted"),
    "a wrong token, with 200": (answers(200, b'{"ok":false,"error":"invalid_auth_token"}'), "halted"),
    "an error name": (answers(200, b'{"ok":false,"error":"plan_limit"}'), (REFUSED, "halted", "halted")),
    "a token in several places": (
        answers(400, b"Access token found in multiple locations"),
        (REFUSED, "halted", "halted"),
    ),
    "plain HTTP to an HTTPS port": (answers(400, PAGE), (REFUSED, REFUSED, "halted")),
    "it must be paid": (answers(402, b'{"error":"Payment required"}'), (REFUSED, "parked", "halted")),
    "not allowed": (answers(403, b'{"error":"Not authorized"}'), "halted"),
    "a black list": (answers(403, PAGE, "Content-Type: text/html"), "halted"),
    "a gateway's 404": (answers(404, b'{"code":404,"error":"Not Found"}'), "halted"),
    "a page's 404": (answers(404, PAGE, "Content-Type: text/html"), "halted"),
    "not acceptable": (answers(406), (REFUSED, REFUSED, "halted")),
    "a proxy wants to know who asks": (answers(407, PAGE, "Proxy-Authenticate: Basic"), "halted"),
    "too slow": (answers(408), "http_408"),
    "gone": (answers(410, b'{"error":"gone"}'), (REFUSED, REFUSED, "halted")),
    "too large": (answers(413, PAGE), REFUSED),
    "too early": (answers(425), "http_425"),
    "too many": (answers(429, PAGE, "Content-Type: text/html"), "http_429"),
    "broken": (answers(500, b'{"error":"SQLITE_BUSY: database is locked"}'), "http_500"),
    "a gateway without its service": (answers(502, PAGE, "Content-Type: text/html"), "http_502"),
    "under maintenance": (
        answers(503, b'{"code":"error","error":"blocklet is under maintenance"}'),
        "http_503",
    ),
    "a gateway that waited": (answers(504, PAGE), "http_504"),
    "a proxy of its own kind": (answers(599), "http_5xx"),
    **{
        f"Retry-After: {value[:30]}": (answers(503, b"", f"Retry-After: {value}"), "http_503")
        for value in ("-1", "0", "9" * 400, "soon", "Thu, 01 Jan 1970 00:00:00 GMT")
        + ("Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 32 Foo 2026 99:99:99 GMT", "1, 1")
    },
}


def kinds(agent: Agent) -> dict[str, set[str]]:
    """For each destination, what went wrong, as an operator is told."""
    found = {}
    for name, each in agent.statistics().destinations.items():
        assert each.delivery is not None
        assert agent.status()["destinations"][name]["no_answer"] >= each.delivery.no_answer
        found[name] = {*each.delivery.retries, *(["parked"] if each.parked else [])}
    return found


def goes_wrong(stage: Stage, agent: Agent, fault: Fault) -> dict[str, set[str]]:
    """Record events while all upstreams have *fault*; nothing is lost by it, nor after it. Gives what went wrong."""
    stage.fault(fault)
    stage.record(agent, 3)
    until(lambda: stage.met() or stage.record(agent, 1))
    until(lambda: all(kinds(agent).values()))
    assert [counts.dead + counts.dropped for counts in agent.books().values()] == [0, 0, 0]
    seen = kinds(agent)
    stage.fault(None)
    stage.record(agent, 1)
    assert agent.flush(30)
    stage.check(agent)
    return seen


@pytest.mark.parametrize("name", [*SILENT, *CUT])
def test_an_answer_that_is_lost_on_the_way_loses_doubles_and_buries_nothing(stage: Stage, name: str) -> None:
    with stage.agent(timeout=0.3 if name in SILENT else 5.0) as agent:
        seen = goes_wrong(stage, agent, {**SILENT, **CUT}[name])
    assert seen == {each: {"no_answer"} for each in NAMES}


@pytest.mark.parametrize("name", ANSWERED)
def test_whatever_answers_in_the_upstream_s_place_loses_doubles_and_buries_nothing(
    stage: Stage, name: str
) -> None:
    fault, expected = ANSWERED[name]
    with stage.agent(timeout=5.0) as agent:
        seen = goes_wrong(stage, agent, fault)
    said = (expected,) * 3 if isinstance(expected, str) else expected
    assert seen == {each: {one} for each, one in zip(NAMES, said, strict=True)}


def test_a_connection_that_is_reset_as_soon_as_it_is_made_loses_nothing(stage: Stage) -> None:
    with stage.agent(timeout=5.0) as agent:
        seen = goes_wrong(stage, agent, reset_at_once)
    for each in seen.values():  # it depends on who is faster
        assert each <= {"not_sent", "no_answer"}


def test_a_length_that_is_too_short_spoils_at_most_the_next_answer(stage: Stage) -> None:
    with stage.agent(timeout=5.0) as agent:
        seen = goes_wrong(stage, agent, alters(with_length(-5), closes=False))
    for each in seen.values():
        assert "halted" in each
        assert each <= {"halted", "no_answer"}
