"""Too much, too long, too slow, too many: refused with an answer, in bounded memory, and nobody else is held up."""

import gzip
import json
import random
import select
import socket
import time

import pytest
from abuse import ACTIVITY, MIB, Memory, accepts, ask, chunked, head, offer, post, rest_of, statuses, unharmed
from sidecar_process import SidecarProcess
from waiting import until

PER = b"/activities.add?billingId=acme&userId=u&activityTypeId=t"
PATIENCE = 1.0  # seconds that a request may take, as the sidecar is told
MAX_BODY = 8 * MIB
# What reading 8 MiB of JSON may take for a moment, twenty-fold and more; what is unbounded takes gigabytes.
MEMORY = 256 * MIB


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory):
    settings = {"request_timeout": str(PATIENCE), "stored_timeout": "20.0"}
    with SidecarProcess(tmp_path_factory.mktemp("s"), sidecar=settings) as running:
        yield running


@pytest.fixture(autouse=True)
def good_requests_go_on(sidecar):
    with unharmed(sidecar), Memory(sidecar).grows_at_most(MEMORY):
        yield


# Heads


@pytest.mark.parametrize(
    ("line", "fields", "status"),
    [
        (b"GET " + PER, [b"X-Long: " + b"x" * 10 * MIB], 431),
        (b"GET " + PER, [b"X" * 10 * MIB + b": x"], 431),
        (b"GET " + PER, [b"X-%d: %s" % (n, b"x" * 100) for n in range(100_000)], 431),
        (b"GET " + PER, [b"X: x"] * 200, 431),
        (b"GET " + PER + b"&x=" + b"x" * 10 * MIB, [], 414),
        (b"GET " + PER + b"&x=" + b"x" * 40_000, [], 414),
        (b"X" * 10 * MIB + b" /", [], 400),
    ],
    ids=["a value", "a name", "many", "many small", "a URL", "a URL just too long", "a method"],
)  # fmt: skip
@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_a_head_that_is_too_large_is_refused_while_it_comes(sidecar, line, fields, status, unix):
    with accepts(sidecar, 0):
        assert statuses(ask(sidecar, head(sidecar, line, *fields), unix=unix)) in ([status], [431])


def test_a_head_within_the_bounds_is_taken(sidecar):
    fields = [b"X-%d: %s" % (n, b"x" * 200) for n in range(90)]
    with accepts(sidecar, 1):
        request = head(sidecar, b"GET " + PER + b"&x=" + b"x" * 30_000, *fields, b"Connection: close")
        assert statuses(ask(sidecar, request)) == [200]


@pytest.mark.parametrize("start", [b"0\r\nX-Trailer: ", b"1;extension="], ids=["trailer", "chunk extension"])
def test_what_follows_a_head_without_being_a_body_is_bounded_too(sidecar, start):
    request = head(sidecar, b"POST /v1/events", b"Transfer-Encoding: chunked") + start + b"x" * 10 * MIB
    with accepts(sidecar, 0):
        assert statuses(ask(sidecar, request)) == [431]


# Bodies


@pytest.mark.parametrize(
    ("path", "limit"),
    [(b"/v1/events", MAX_BODY), (b"/activities.add", 256 * 1024), (b"/api/meter-events", MIB), (b"/api/meters", MIB)],
)  # fmt: skip
def test_a_body_that_is_too_long_is_refused_whether_it_says_so_or_not(sidecar, path, limit):
    body = b'{"x":"' + b"x" * limit + b'"}'
    pieces = [body[at : at + 100_000] for at in range(0, len(body), 100_000)]
    packed = gzip.compress(body)
    with accepts(sidecar, 0):
        for request in (
            post(sidecar, b"Connection: close", path=path, body=body),
            post(
                sidecar, b"Connection: close", b"Transfer-Encoding: chunked", path=path, body=chunked(*pieces)
            ),
            post(sidecar, b"Connection: close", b"Content-Encoding: gzip", path=path, body=packed),
        ):
            assert statuses(ask(sidecar, request)) == [413]


def test_a_bomb_does_not_go_off(sidecar):
    packed = gzip.compress(bytes(200 * MIB), 9)
    assert len(packed) < 220_000
    with accepts(sidecar, 0), Memory(sidecar).grows_at_most(32 * MIB):
        for path in (b"/v1/events", b"/activities.add", b"/api/meter-events"):
            request = post(sidecar, b"Connection: close", b"Content-Encoding: gzip", path=path, body=packed)
            assert statuses(ask(sidecar, request)) == [413]


@pytest.mark.parametrize(
    "packed",
    [
        b"no gzip at all",
        gzip.compress(ACTIVITY)[:-1],
        gzip.compress(ACTIVITY) + b"rest",
        gzip.compress(ACTIVITY)[:-8] + bytes(8),
        gzip.compress(b"") * 100_000,
    ],
    ids=["none", "cut", "longer", "wrong sum", "very many members"],
)
def test_broken_gzip_is_told(sidecar, packed):
    with accepts(sidecar, 0):
        answer = ask(sidecar, post(sidecar, b"Connection: close", b"Content-Encoding: gzip", body=packed))
        assert statuses(answer) == [400]
        assert b"gzip" in answer


def meter_event(value):
    return b'{"event_name":"t","identifier":"i","payload":{"customer_id":"c","value":' + value + b"}}"


BOMBS = {
    "arrays in arrays": (b"[" * 4 * MIB, 400),
    "objects in objects": (b'{"a":' * MIB, 400),
    "deep metadata": (ACTIVITY[:-1] + b',"metadata":' + b"[" * 50 + b"]" * 50 + b"}", 400),
    "a number of a million digits": (ACTIVITY[:-1] + b',"at":' + b"9" * MIB + b"}", 400),
    "a fraction of a million digits": (ACTIVITY[:-1] + b',"at":0.' + b"9" * MIB + b"}", 202),
    "an exponent of a million digits": (ACTIVITY[:-1] + b',"at":1e' + b"9" * MIB + b"}", 400),
    "a great exponent": (ACTIVITY[:-1] + b',"at":1e999999999}', 400),
    "an exponent beyond all decimals": (ACTIVITY[:-1] + b',"at":1e99999999999999999999}', 400),
    "a kind of a million letters": (ACTIVITY[:-1] + b',"type":"' + b"x" * MIB + b'"}', 400),
    "a million fields": (b"{" + b",".join(b'"%d":0' % n for n in range(700_000)) + b"}", 400),
    "an event of a megabyte": (b'{"billing_id":"b","activity_type_id":"t","user_id":"' + b"u" * MIB + b'"}', 400),
    "half a pair of surrogates": (ACTIVITY.replace(b"acme", rb"\ud800"), 400),
    "no UTF-8": (ACTIVITY.replace(b"acme", b"\xff\xfe"), 400),
    "UTF-16": (ACTIVITY.decode().encode("utf-16"), 400),
    "a NUL": (ACTIVITY + b"\0", 400),
    "NaN": (ACTIVITY[:-1] + b',"at":NaN}', 400),
    "four million numbers": (b"[" + b"1," * 4_000_000 + b"1]", 413),
    "four million lines": (b"{}\n" * 2_700_000, 413),
    "eight million blank lines": (b"{\n" + b"\n" * (MAX_BODY - 100) + b"{", 413),
    "the most events that are taken": (b"[" + b"1," * 99_999 + b"1]", 400),
}  # fmt: skip


@pytest.mark.parametrize(("body", "status"), BOMBS.values(), ids=BOMBS)
def test_json_that_is_meant_to_hurt_is_told_what_is_wrong_with_it(sidecar, body, status):
    with accepts(sidecar, int(status == 202)):
        answer = ask(sidecar, post(sidecar, b"Connection: close", body=body))
        assert statuses(answer) == [status]
    if status == 400:
        said = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert said["detail"]


@pytest.mark.parametrize(
    "value",
    [b"1e400", b"-1e-400", b"9" * 129, b"9" * 5000, b'"1e5"', b'"' + b"9" * 100_000 + b'"', b"1e99999999999999999999"],
)  # fmt: skip
def test_amounts_beyond_reason_are_told_in_both_forms(sidecar, value):
    ours = b'{"event_name":"t","customer_id":"c","value":' + value + b"}"
    with accepts(sidecar, 0):
        for path, body in ((b"/api/meter-events", meter_event(value)), (b"/v1/events", ours)):
            answer = ask(sidecar, post(sidecar, b"Connection: close", path=path, body=body))
            assert statuses(answer) == [400]


# Slow ones, and silent ones


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
@pytest.mark.parametrize("of", ["head", "length", "chunks"])
def test_who_sends_a_byte_now_and_then_is_not_waited_for(sidecar, of, unix):
    request = {
        "head": head(sidecar, b"GET " + PER, b"X: " + b"x" * 1000),
        "length": post(sidecar, body=ACTIVITY + b" " * 1000),
        "chunks": post(sidecar, b"Transfer-Encoding: chunked", body=chunked(*[b" "] * 1000)),
    }[of]
    at = request.index(b"Host") if of == "head" else request.index(b"\r\n\r\n") + 4
    with accepts(sidecar, 0), sidecar.raw(unix=unix) as connection:
        connection.sendall(request[:at])
        deadline = time.monotonic() + 30
        while not select.select([connection], [], [], 0.1)[0]:
            assert time.monotonic() < deadline
            connection.sendall(request[at : at + 1])
            at += 1
        assert statuses(rest_of(connection)) == [408]


def test_many_slow_ones_hold_nobody_up(sidecar):
    slow = [sidecar.raw() for _ in range(200)]
    for connection in slow:
        connection.sendall(b"POST /v1/events HTTP/1.1\r\nHost: local")
    with accepts(sidecar, 20):
        for _ in range(20):
            assert statuses(ask(sidecar, post(sidecar, b"Connection: close"))) == [202]
    for connection in slow:
        with connection:
            assert statuses(rest_of(connection)) == [408]


def test_who_says_nothing_is_let_go_without_a_word(sidecar):
    with sidecar.raw() as connection:
        assert rest_of(connection) == b""
    with sidecar.raw() as connection:
        connection.sendall(b"\r\n" * 5)
        assert rest_of(connection) == b""


def test_who_asks_now_and_then_keeps_its_connection(sidecar):
    request = head(sidecar, b"GET /healthz")
    with sidecar.raw() as connection:
        for _ in range(3):
            # Longer than a request may take to come: between two of them the clock stands.
            assert select.select([connection], [], [], 1.5 * PATIENCE)[0] == []
            connection.sendall(request)
            assert connection.recv(10_000).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("line", [b"GET /openapi.json", b"GET /v1/status", b"GET /metrics"])
def test_who_does_not_read_the_answers_is_let_go(sidecar, line):
    asking = head(sidecar, line) * 50
    with sidecar.raw(unix=True) as connection:
        connection.setblocking(False)

        def is_let_go():
            try:
                connection.send(asking)
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                return True
            return False

        until(is_let_go, 60)


@pytest.mark.parametrize("answers", range(5, 15, 2))
def test_a_connection_that_is_closed_does_not_wait_for_its_reader_for_ever(sidecar, answers):
    requests = head(sidecar, b"GET /openapi.json") * answers + b"nonsense\r\n\r\n"
    with sidecar.raw(unix=True) as connection:
        connection.sendall(requests)
        left = select.poll()
        left.register(connection, 0)
        until(lambda: any(event & select.POLLHUP for _, event in left.poll(0)))


def test_who_sends_requests_without_end_and_reads_nothing_takes_no_memory(sidecar):
    many = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 10_000
    with Memory(sidecar).grows_at_most(64 * MIB), sidecar.raw() as connection:
        connection.setblocking(False)
        deadline = time.monotonic() + 60
        sent = 0
        try:
            while sent < 100 * MIB:
                assert time.monotonic() < deadline
                if select.select([], [connection], [], 1)[1]:
                    sent += connection.send(many)
        except (BrokenPipeError, ConnectionResetError):
            pass


def test_who_leaves_in_the_middle_has_sent_nothing(sidecar):
    draw = random.Random(7)
    whole = post(sidecar, body=b"[" + b",".join([ACTIVITY] * 500) + b"]")
    with accepts(sidecar, 0):
        for _ in range(50):
            with sidecar.raw(unix=draw.random() < 0.5) as connection:
                connection.sendall(whole[: draw.randrange(len(whole))])
                if draw.random() < 0.5:  # with a reset
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


# Too many


def test_connections_are_counted_and_those_beyond_are_told_when_to_come_again(tmp_path):
    settings = {"max_connections": "20", "request_timeout": "20.0"}
    with SidecarProcess(tmp_path, sidecar=settings) as few, unharmed(few):
        request = head(few, b"GET " + PER)
        good = [few.raw() for _ in range(20)]
        for connection in good:
            connection.sendall(request)
            assert connection.recv(10_000).startswith(b"HTTP/1.1 200")
        for _ in range(50):
            with few.raw() as another:
                answer = offer(another, request)
                assert statuses(answer) == [503]
                assert b"retry-after: " in answer
        for connection in good:  # those who were there first are served on
            connection.sendall(request)
            assert connection.recv(10_000).startswith(b"HTTP/1.1 200")
            connection.close()
        until(lambda: statuses(ask(few, head(few, b"GET /healthz", b"Connection: close"))) == [200])
        with accepts(few, 0):
            pass
        assert few.books()["accepted"] == 40


def test_a_flood_of_connections_leaves_room_for_the_disk(tmp_path):
    settings = {"max_connections": "100", "request_timeout": "20.0"}
    with SidecarProcess(tmp_path, sidecar=settings) as flooded, flooded.client() as client:
        assert client.get("/healthz").status_code == 200
        crowd = []
        try:
            crowd.extend(flooded.raw() for _ in range(700))
            # The one that was there first is still heard, and the disk still has its files.
            assert client.post("/v1/events?wait=stored", content=ACTIVITY).json()["stored"] is True
        finally:
            for each in crowd:
                each.close()
        until(lambda: statuses(ask(flooded, head(flooded, b"GET /healthz", b"Connection: close"))) == [200])
        with unharmed(flooded):
            pass
