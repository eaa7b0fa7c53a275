"""Upstreams that misbehave in every way that a network, a proxy or a bad day knows: nothing is lost, doubled or buried."""

import gzip
import os
import random
import ssl
import subprocess
import textwrap
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import pytest
from programs import run
from stage import NAMES, QUICK, Stage, troubles
from unruly import Exchange, Fault, eagerly
from upstream import UpstreamServer
from waiting import until

from per_agent import Agent, PaymentKit, Per
from per_agent.destinations.http import Upstream

OK = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{"ok":true}'


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
        return head.replace(
            b"Content-Length: %d" % len(body), b"Content-Length: %d" % (len(body) + change)
        ) + (b"\r\n\r\n" + body)

    return spoil


def squeezed(how: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """An answer that is compressed, which nobody asked for."""

    def spoil(answer: bytes) -> bytes:
        body = how(answer.partition(b"\r\n\r\n")[2])
        return b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s" % (
            len(body),
            body,
        )

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
}
# What answers may be anything, but not the upstream as it should be. Where a name stands alone, all three say so.
Expected = str | tuple[str, str, str]
REFUSED = "refused_uncertain"
WAITS = (
    *("-1", "0", "9" * 400, "soon", "1, 1"),
    *("Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 32 Foo 2026 99:99:99 GMT"),
)
ANSWERED: dict[str, tuple[Fault, Expected]] = {
    "an endless answer": (endless(b" " * 50_000, first=b'HTTP/1.1 200 OK\r\n\r\n{"ok":true}'), "halted"),
    "a page": (answers(200, PAGE, "Content-Type: text/html"), "halted"),
    "nothing at all": (answers(200), "halted"),
    "ok, but not quite": (answers(200, b'{"ok":"true"}'), "halted"),
    "ok, with a comma too much": (answers(200, b'{"ok":true,}'), "halted"),
    "no content": (answers(204), "halted"),
    "good gzip": (alters(squeezed(gzip.compress), closes=False), "halted"),
    "bad gzip": (
        alters(squeezed(lambda body: gzip.compress(body)[:15] + b"\xff" * 9), closes=False),
        "halted",
    ),
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
        for value in WAITS
    },
}


def goes_wrong(stage: Stage, agent: Agent, fault: Fault) -> dict[str, set[str]]:
    """Record events while all upstreams have *fault*; nothing is lost by it, nor after it. Gives what went wrong."""
    before = troubles(agent)
    seen: dict[str, set[str]] = {}

    def is_seen() -> bool:
        seen.update({name: set(each - before[name]) for name, each in troubles(agent).items()})
        return all(seen.values())

    stage.fault(fault)
    stage.record(agent, 3)
    until(lambda: stage.met() or stage.record(agent, 1))
    until(is_seen)
    assert [counts.dead + counts.dropped for counts in agent.books().values()] == [0, 0, 0]
    stage.fault(None)
    stage.record(agent, 1)
    assert agent.flush(30)
    stage.check(agent)
    return seen


@pytest.mark.parametrize("name", [*SILENT, *CUT])
def test_an_answer_that_is_lost_on_the_way_loses_doubles_and_buries_nothing(stage: Stage, name: str) -> None:
    with stage.agent(timeout=1.0 if name in SILENT else 5.0) as agent:
        seen = goes_wrong(stage, agent, {**SILENT, **CUT}[name])
    assert seen == {each: {"no_answer"} for each in NAMES}


def test_an_upstream_that_answers_twice_is_asked_once_and_its_second_answer_is_taken_for_none(
    stage: Stage,
) -> None:
    with stage.agent(timeout=5.0) as agent:
        before = troubles(agent)
        stage.fault(answered_twice)
        for _ in range(5):
            stage.record(agent, 1)
            assert agent.flush(30)
        assert stage.met(5)
        stage.check(agent)
        assert troubles(agent) == before
    assert sorted(stage.upstream.score().users) == sorted(stage.activities)


def test_whatever_answers_in_the_upstream_s_place_loses_doubles_and_buries_nothing(stage: Stage) -> None:
    """One after the other in the life of one agent: none leaves anything behind that helps the next to do harm."""
    seed = int(os.environ.get("PER_AGENT_TEST_SEED", random.randrange(2**32)))
    print(f"PER_AGENT_TEST_SEED={seed}")
    with stage.agent(timeout=10.0) as agent:
        for name in random.Random(seed).sample(list(ANSWERED), len(ANSWERED)):
            print(name)
            fault, expected = ANSWERED[name]
            said = (expected,) * 3 if isinstance(expected, str) else expected
            seen = goes_wrong(stage, agent, fault)
            assert seen == {each: {one} for each, one in zip(NAMES, said, strict=True)}, name


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


# TLS


def certificate(folder: Path) -> ssl.SSLContext:
    """A server's side of TLS, with a certificate that it signed itself."""
    subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
        " -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem",
        shell=True,
        cwd=folder,
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


# Python's ssl module leaves its socket to the collector where the peer resets before the handshake begins.
@pytest.mark.filterwarnings("default:unclosed <ssl.SSLSocket:ResourceWarning")
@pytest.mark.parametrize("fault", ["self-signed", "plain", "silent", "cut"])
def test_an_upstream_whose_tls_fails_is_told_nothing_and_loses_nothing(stage: Stage, fault: str) -> None:
    told: list[bytes] = []

    @eagerly
    def self_signed(exchange: Exchange) -> bool:
        with context.wrap_socket(exchange.client, server_side=True) as tls:
            told.append(tls.recv(65536))
        return False

    def plain(exchange: Exchange) -> bool:
        told.append(exchange.client.recv(65536))
        exchange.say(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        return False

    context = certificate(stage.folder)
    stage.fault(
        {"self-signed": self_signed, "plain": plain, "silent": hello_and_silence, "cut": reset_at_once}[fault]
    )
    agent = stage.agent(timeout=0.5 if fault == "silent" else 5.0, scheme="https")
    stage.record(agent, 3)
    until(stage.met)
    seen = until(lambda: all((each := troubles(agent)).values()) and each)
    agent.close(0)
    assert {kind for each in seen.values() for kind in each} == {"not_sent"}
    assert not any(token in said for said in told for token in (b"token-1", b"key-1", b"Bearer"))
    # The operator corrects the address; for the agent the events are those of a process that ended.
    stage.fault(None)
    with stage.agent(timeout=5.0) as agent:
        stage.record(agent, 1)
        assert agent.flush(30)
        stage.check(agent)


def hello_and_silence(exchange: Exchange) -> bool:
    """Hear the client's hello, and say nothing."""
    return exchange.hold()


def test_plain_http_to_a_port_that_speaks_tls_loses_nothing(stage: Stage) -> None:
    context = certificate(stage.folder)

    @eagerly
    def speaks_tls(exchange: Exchange) -> bool:
        context.wrap_socket(exchange.client, server_side=True)
        return False

    with stage.agent(timeout=5.0) as agent:
        seen = goes_wrong(stage, agent, speaks_tls)
    assert seen == {each: {"no_answer"} for each in NAMES}


# Names

# A resolver that this process alone asks: `names` says which address a name has, None that it cannot be resolved.
RESOLVER = """
import socket, threading
names, asked, hang = {}, [], threading.Event()
hang.set()
real = socket.getaddrinfo
def getaddrinfo(host, *rest, **more):
    name = host.decode() if isinstance(host, bytes) else host
    if name.endswith(".test"):
        asked.append(name)
        hang.wait(30)
        if names[name] is None:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        host = names[name]
    return real(host, *rest, **more)
socket.getaddrinfo = getaddrinfo
"""
NAMED = """
def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, agent.status()
        time.sleep(0.01)

port = int(sys.argv[2])
quick = DeliverySettings(backoff_initial=0.02, backoff_max=0.1)
agent = Agent(data_dir, [
    Per("token-1", url=f"http://per.test:{port}", timeout=5.0),
    PaymentKit(f"http://kit.test:{port}", "key-1", timeout=5.0),
], delivery=quick)
count = 0

def add(times=1):
    global count
    for _ in range(times):
        agent.add_activity("acme", f"u-{count}", "active")
        agent.add_meter_event("api.calls", customer_id="cus-1", value=1)
        count += 1

def states():
    return {each["state"] for each in agent.status()["destinations"].values()}

def no_answer():
    return [each["no_answer"] for each in agent.status()["destinations"].values()]
"""


def test_a_name_that_cannot_be_resolved_and_then_can_loses_nothing(
    tmp_path: Path, upstream: UpstreamServer
) -> None:
    program = """
    names.update({"per.test": None, "kit.test": None})
    add(5)
    until(lambda: states() == {"retrying"} and len(asked) > 6)
    words = [each["reason"] for each in agent.status()["destinations"].values()]
    assert all(each.startswith("not sent: ConnectError: ") for each in words), words
    assert no_answer() == [0, 0]
    names.update({"per.test": "127.0.0.1", "kit.test": "127.0.0.1"})
    assert agent.flush(30)

    # Gone again, and back at another address, where nobody is, and back where it was.
    for address in (None, "127.0.0.99", "127.0.0.1"):
        names.update({"per.test": address, "kit.test": address})
        for destination in agent.destinations:
            destination.close()  # as after a while of silence: connections that are kept need no name
        add(5)
        if address != "127.0.0.1":
            until(lambda: states() == {"retrying"})
    assert agent.flush(30)
    assert no_answer() == [0, 0]
    add()
    assert agent.close(30)
    print([(each.accepted, each.delivered, each.dead) for each in agent.books().values()])
    """
    said = run(NAMED + textwrap.dedent(program), tmp_path / "data", str(upstream.port), world=RESOLVER)
    assert said == f"{[(21, 21, 0)] * 2}\n"
    score = upstream.score()
    assert Counter(score.users) == Counter(f"u-{n}" for n in range(21))
    assert len(score.identifiers) == 21


def test_a_resolver_that_hangs_holds_up_no_caller_no_other_destination_and_no_stop(
    tmp_path: Path, upstream: UpstreamServer
) -> None:
    program = """
    names.update({"per.test": "127.0.0.1", "kit.test": "127.0.0.1"})
    agent = Agent(data_dir, [*agent.destinations, MemoryDestination()], delivery=quick)
    hang.clear()
    add(20)
    until(lambda: agent.books()["memory"].delivered == 40)
    began = time.monotonic()
    assert agent.close(0.5) is False
    assert time.monotonic() - began < 20, "a lookup would have gone on for half a minute"
    assert [each.dead + each.dropped for each in agent.books().values()] == [0, 0, 0]
    assert [agent.books()[name].pending for name in ("per", "payment_kit")] == [20, 20]
    print(count)
    sys.stdout.flush()
    os._exit(0)
    """
    said = run(NAMED + textwrap.dedent(program), tmp_path / "data", str(upstream.port), world=RESOLVER)
    assert said == "20\n"
    destinations = [Per("token-1", url=upstream.url), PaymentKit(upstream.url, "key-1")]
    with Agent(tmp_path / "data", destinations, delivery=QUICK) as agent:
        assert agent.flush(30)
    score = upstream.score()
    assert Counter(score.users) == Counter(f"u-{n}" for n in range(20))
    assert len(score.identifiers) == 20


# Clocks

CLOCK = """
import time
jump, real_time, real_time_ns = [0.0], time.time, time.time_ns
time.time = lambda: real_time() + jump[0]
time.time_ns = lambda: real_time_ns() + int(jump[0] * 1e9)
"""
YEAR = 365 * 86_400


@pytest.mark.parametrize("jump", [-30 * YEAR, 30 * YEAR], ids=["back", "forward"])
def test_a_clock_that_is_set_during_a_wait_neither_prolongs_nor_ends_it(
    tmp_path: Path, upstream: UpstreamServer, jump: int
) -> None:
    program = """
    sys.path.insert(0, sys.argv[4])
    from upstream import UpstreamServer
    upstream = UpstreamServer(data_dir, port)
    names.update({"per.test": "127.0.0.1", "kit.test": "127.0.0.1"})
    add(3)
    until(lambda: states() == {"retrying"} and agent.settled)
    asked_before = upstream.score().requests
    jump[0] = float(sys.argv[3])
    add(3)
    assert not agent.flush(0.5)
    assert upstream.score().requests == asked_before, "the upstream asked for more time"
    upstream.clear_rules()
    assert agent.flush(30)
    jump[0] = 0.0
    add(3)
    assert agent.close(30)
    print([(each.accepted, each.delivered, each.dead) for each in agent.books().values()])
    """
    upstream.rule(status=429, headers={"Retry-After": "2"})
    arguments = (tmp_path / "data", str(upstream.port), str(jump), str(Path(__file__).parent))
    said = run(NAMED + textwrap.dedent(program), *arguments, world=RESOLVER + CLOCK)
    assert said == f"{[(9, 9, 0)] * 2}\n"
    assert Counter(upstream.score().users) == Counter(f"u-{n}" for n in range(9))
    assert len(upstream.score().identifiers) == 9


@pytest.mark.parametrize(
    ("ahead", "wait"), [(0, 60.0), (30, 30.0), (3600, 0.0), (-30, 90.0), (-3600, 300.0), (-30 * YEAR, 300.0)]
)
def test_a_date_to_wait_for_is_read_against_the_wall_clock_of_that_moment(
    upstream: UpstreamServer, ahead: int, wait: float
) -> None:
    now = 1_700_000_000.0
    at = format_datetime(datetime.fromtimestamp(now + 60, UTC), usegmt=True)
    upstream.rule(status=503, headers={"Retry-After": at})
    up = Upstream("up", upstream.url, None, timeout=5.0, concurrency=1, clock=lambda: now + ahead)
    assert up.ask("GET", "/activities.add").retry_after == wait
    up.close()
