"""The short way of a request: answered in the callback that brought it, and in all else as on the long way."""

import gzip
import json
import os
import random
import re
import signal
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from fronted import TOKEN, Fronted, head, request
from sidecar_process import SidecarProcess
from waiting import until

from per_agent.event import RECORDS
from per_agent.spool.disk import FILE

ACTIVITY = b'{"billing_id":"acme","user_id":"u-17","activity_type_id":"active-users"}'
METERED = b'{"event_name":"tokens","customer_id":"c","value":"0.10"}'
KIT = b'{"event_name":"tokens","identifier":"k-1","payload":{"customer_id":"c","value":3}}'
PER = b"billingId=acme&userId=u%2B17&activityTypeId=t"
FORM = b"application/x-www-form-urlencoded"
PACKED = b"Content-Encoding: gzip"
EVENTS, METER_EVENTS, ACTIVITIES = b"/v1/events", b"/api/meter-events", b"/activities.add"


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory):
    with Fronted(tmp_path_factory.mktemp("s")) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_known(sidecar):
    sidecar.hot.forget()


def plain(answer):
    """*answer* without what is another each time."""
    answer = re.sub(rb"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", b"ID", answer)
    return re.sub(rb'("\w+_at":"|"timestamp":)[0-9T:.Z-]+', rb"\1NOW", answer)


def posted(path, body, **how):
    """A request by POST, on the short way and, for what it says and nobody needs to be told, on the long way."""
    short, long = b"POST " + path, b"POST " + path + b"?wait=accepted"
    fields = how.pop("fields", ())
    return request(short, body, *fields, **how), request(long, body, *fields, **how)


def got(query):
    line = b"GET " + ACTIVITIES + b"?"
    return head(line + query), head(line + query + b"&wait=accepted")


GOOD = {
    "an activity": posted(EVENTS, ACTIVITY),
    "of no kind": posted(EVENTS, ACTIVITY, kind=b""),
    "as curl sends it": posted(EVENTS, ACTIVITY, kind=FORM),
    "with a charset": posted(EVENTS, ACTIVITY, kind=b"Application/JSON; charset=utf-8"),
    "with an id": posted(EVENTS, ACTIVITY[:-1] + b',"id":"an \\"id\\" of \xc3\xa9"}'),
    "with a time": posted(EVENTS, ACTIVITY[:-1] + b',"at":1700000000.25}'),
    "a meter event": posted(EVENTS, METERED),
    "with a request id": posted(EVENTS, ACTIVITY, fields=[b"X-Request-Id: r-1"]),
    "with a request id that is none": posted(EVENTS, ACTIVITY, fields=[b"X-Request-Id: r 1"]),
    "with spaces around": posted(EVENTS, b" \r\n" + ACTIVITY + b"\n"),
    "Per's, by GET": got(PER),
    "Per's, with spaces": got(b"billingId=a+b&userId=u&activityTypeId=t&&"),
    "Per's, as a form": posted(ACTIVITIES, PER, kind=FORM),
    "Per's, as JSON": posted(ACTIVITIES, b'{"billingId":"a","userId":"u","activityTypeId":"t"}'),
    "Payment Kit's": posted(METER_EVENTS, KIT),
    "Payment Kit's, with all": posted(
        METER_EVENTS,
        b'{"event_name":"t","identifier":"k-2","timestamp":1700000000,"livemode":false,"metadata":{"a":"b","n":1},'
        b'"source_data":{"x":[1.50]},"payload":{"customer_id":"c","value":"-0.010","subscription_id":"s"}}',
    ),
}  # fmt: skip
BAD = {
    "not JSON": posted(EVENTS, b"{"),
    "an unknown field": posted(EVENTS, ACTIVITY[:-1] + b',"usr":1}'),
    "a wrong time": posted(EVENTS, ACTIVITY[:-1] + b',"at":1e11}'),
    "half a pair of surrogates": posted(EVENTS, ACTIVITY.replace(b"acme", rb"\ud800")),
    "a float in words": posted(EVENTS, METERED.replace(b"0.10", b"1e3")),
    "a kind that is not taken": posted(EVENTS, ACTIVITY, kind=b"text/html"),
    "a great event": posted(EVENTS, ACTIVITY.replace(b"u-17", b"u" * 15_000) * 1 + b"x"),
    "Per's, without a user": got(b"billingId=a&activityTypeId=t"),
    "Per's, given twice": got(PER + b"&userId=u"),
    "Per's, not UTF-8": got(PER + b"&x=%ff"),
    "Per's, no form": posted(ACTIVITIES, b"[]", kind=b"application/json"),
    "Per's, of a wrong kind": posted(ACTIVITIES, b"x", kind=b"text/html", fields=[b"X-Request-Id: r-2"]),
    "Payment Kit's, without an identifier": posted(METER_EVENTS, KIT.replace(b'"identifier":"k-1",', b"")),
    "Payment Kit's, with a payload that is none": posted(METER_EVENTS, b'{"identifier":"i","payload":7}'),
    "Payment Kit's, not JSON": posted(METER_EVENTS, b"nonsense"),
    "Per's, packed": posted(ACTIVITIES, gzip.compress(PER), kind=FORM, fields=[PACKED]),
    "Payment Kit's, packed": posted(METER_EVENTS, gzip.compress(KIT), fields=[PACKED]),
    "a wrong wait": (head(b"GET /activities.add?wait=x&" + PER), head(b"GET /activities.add?wait=x&" + PER)),
    "a method that is not taken": (head(b"GET /v1/events"), head(b"GET /v1/events?wait=accepted")),
}  # fmt: skip


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
@pytest.mark.parametrize(("short", "long"), (GOOD | BAD).values(), ids=GOOD | BAD)
def test_both_ways_answer_alike(sidecar, short, long, unix):
    with sidecar.connect(unix=unix) as connection:
        expected = plain(connection.ask(long))
        assert plain(connection.ask(short)) == expected, "its head was parsed"
        assert plain(connection.ask(short)) == expected, "its head was known, where it could be"


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
@pytest.mark.parametrize("name", GOOD)
def test_a_good_request_makes_no_task_and_is_counted(sidecar, name, unix):
    short, _ = GOOD[name]
    with sidecar.connect(unix=unix) as connection:
        tasks, seen = sidecar.tasks, answered(sidecar)
        for _ in range(3):
            assert connection.ask(short).startswith(b"HTTP/1.1 20")
        assert sidecar.tasks == tasks
        assert answered(sidecar) == seen + 3
    assert len(sidecar.hot.known) == 1


def answered(sidecar):
    return sum(times.count for _, status, times in sidecar.service.times.look() if status == "2xx")


def test_each_event_is_accepted_once(sidecar):
    before = sidecar.accepted()
    named = request(b"POST /v1/events", ACTIVITY[:-1] + b',"id":"once"}')
    with sidecar.connect() as connection:
        for each in (
            named,
            request(b"POST /v1/events", ACTIVITY),
            head(b"GET /activities.add?" + PER),
            named,
        ):
            assert connection.ask(each).startswith(b"HTTP/1.1 20")
    assert sidecar.accepted() == before + 3


# What goes the long way


def expecting(sidecar, connection):
    whole = request(b"POST /v1/events", ACTIVITY, b"Expect: 100-continue")
    assert connection.ask(whole.removesuffix(ACTIVITY)) == b"HTTP/1.1 100 Continue\r\n\r\n"
    return connection.ask(ACTIVITY)


def in_pieces(sidecar, connection):
    whole, tasks = request(b"POST /v1/events", ACTIVITY), sidecar.tasks
    connection.socket.sendall(whole[:-10])
    until(
        lambda: sidecar.tasks == tasks + 1
    )  # who may not go on is told at once, so the application has it now
    return connection.ask(whole[-10:])


LONG = {
    "who asks before it sends": expecting,
    "a body in pieces": in_pieces,
    "chunks": lambda _, c: c.ask(
        head(b"POST /v1/events", b"Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(ACTIVITY), ACTIVITY)
    ),
    "gzip": lambda _, c: c.ask(request(b"POST /v1/events", gzip.compress(ACTIVITY), PACKED)),
    "an offer of another protocol": lambda _, c: c.ask(
        request(b"POST /v1/events", ACTIVITY, b"Connection: Upgrade", b"Upgrade: h2c")
    ),
    "a wish to wait": lambda _, c: c.ask(request(b"POST /v1/events?wait=stored", ACTIVITY)),
    "Per's wish to wait": lambda _, c: c.ask(head(b"GET /activities.add?wait=stored&" + PER)),
    "Payment Kit's wish to wait": lambda _, c: c.ask(request(b"POST /api/meter-events?wait=stored", KIT)),
    "Per's wish to wait, escaped": lambda _, c: c.ask(head(b"GET /activities.add?w%61it=stored&" + PER)),
    "Payment Kit's wish to wait, escaped": lambda _, c: c.ask(
        request(b"POST /api/meter-events?livemode=true&%77%61%69%74=stored", KIT)
    ),
    "several events": lambda _, c: c.ask(request(b"POST /v1/events", b"[" + ACTIVITY + b"," + METERED + b"]")),
    "several lines": lambda _, c: c.ask(request(b"POST /v1/events", ACTIVITY + b"\n" + ACTIVITY, kind=b"application/x-ndjson")),
    "a long body": lambda _, c: c.ask(request(b"POST /v1/events", ACTIVITY + b" " * 20_000)),
    "a path in other letters": lambda _, c: c.ask(request(b"POST /v1/event%73", ACTIVITY)),
    "an ISO time": lambda _, c: c.ask(request(b"POST /v1/events", ACTIVITY[:-1] + b',"at":"2026-01-01T00:00:00Z"}')),
    "the last request": lambda _, c: c.ask(request(b"POST /v1/events", ACTIVITY, b"Connection: close")),
    "HTTP/1.0": lambda _, c: c.ask(request(b"POST /v1/events", ACTIVITY).replace(b"/1.1", b"/1.0", 1)),
}  # fmt: skip


@pytest.mark.parametrize("asking", LONG.values(), ids=LONG)
def test_what_takes_its_time_gets_a_task_and_the_same_answer(sidecar, asking):
    with sidecar.connect() as other:  # its head is known
        assert other.ask(request(b"POST /v1/events", ACTIVITY)).startswith(b"HTTP/1.1 202")
    tasks = sidecar.tasks
    with sidecar.connect() as connection:
        assert asking(sidecar, connection).startswith(b"HTTP/1.1 20")
    assert sidecar.tasks == tasks + 1


def test_where_answers_wait_for_the_disk_none_is_given_at_once(tmp_path):
    with Fronted(tmp_path, answer_when="stored") as stored, stored.connect() as connection:
        for number in range(3):
            assert connection.ask(head(b"GET /activities.add?" + PER)).startswith(b"HTTP/1.1 200")
            assert stored.tasks == number + 1


@pytest.mark.parametrize("wait", [b"wait=stored", b"w%61it=stored", b"%77%61%69%74=%73tored"])
def test_what_is_not_stored_yet_is_not_said_to_be_however_the_wish_is_written(tmp_path, wait):
    with Fronted(tmp_path, stored_timeout=0.1) as slow, slow.connect() as connection:
        assert connection.ask(head(b"GET /activities.add?wait=stored&" + PER)).startswith(b"HTTP/1.1 200")
        (database,) = (tmp_path / "data").glob(f"spools/*/{FILE}")
        with closing(sqlite3.connect(database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for asking in (
                head(b"GET /activities.add?" + PER + b"&" + wait),
                request(b"POST /api/meter-events?" + wait, KIT),
                request(b"POST /v1/events?" + wait, ACTIVITY),
            ):
                assert connection.ask(asking).startswith(b"HTTP/1.1 504")


def test_answers_of_both_ways_keep_the_order_of_their_requests(sidecar):
    named = [b'%b,"id":"o%d"}' % (ACTIVITY[:-1], number) for number in range(60)]
    lines = [b"POST /v1/events" + (b"?wait=stored" if number % 7 == 3 else b"") for number in range(60)]
    pieces = [request(line, body) for line, body in zip(lines, named, strict=True)]
    for _ in range(2):  # with heads that are unknown, and known
        with sidecar.connect() as connection:
            connection.socket.sendall(b"".join(pieces))
            for number in range(60):
                assert b'"o%d"' % number in connection.answer()


def test_an_answer_that_takes_its_time_is_not_overtaken(sidecar):
    def named(name, line=b"POST /v1/events"):
        return request(line, b'%b,"id":"%b"}' % (ACTIVITY[:-1], name))

    with sidecar.connect(unix=True) as connection, sidecar.connect() as other:
        assert b'"known"' in connection.ask(named(b"known"))
        tasks = sidecar.tasks
        sidecar.gate.clear()
        try:
            connection.socket.sendall(named(b"first", b"POST /v1/events?wait=accepted"))
            until(lambda: sidecar.tasks == tasks + 1)
            connection.socket.sendall(named(b"later"))
            for _ in range(2):  # when the second is answered, all that came before the first was looked at
                assert b'"other"' in other.ask(named(b"other"))
        finally:
            sidecar.gate.set()
        assert b'"first"' in connection.answer()
        assert b'"later"' in connection.answer()


def test_what_follows_in_the_same_piece_is_not_lost(sidecar):
    known = request(b"POST /v1/events", ACTIVITY)
    with sidecar.connect() as connection:
        connection.ask(known)
        connection.socket.sendall(known + known + known[:100])
        assert connection.answer().startswith(b"HTTP/1.1 202")
        assert connection.answer().startswith(b"HTTP/1.1 202")
        assert connection.ask(known[100:]).startswith(b"HTTP/1.1 202")


def test_while_it_stops_connections_are_closed_after_their_answer(tmp_path):
    with Fronted(tmp_path) as stopping, stopping.connect() as connection:
        known = request(b"POST /v1/events", ACTIVITY)
        assert b"connection: close" not in connection.ask(known)
        stopping.bounds.draining = True
        assert b"connection: close" in connection.ask(known)
        assert connection.answer() == b""


# Heads that are known


def test_a_head_that_is_good_on_the_unix_socket_is_not_on_tcp(sidecar):
    nobody = head(b"GET /activities.add?" + PER, token=None)
    with sidecar.connect(unix=True) as unix, sidecar.connect() as tcp:
        for _ in range(2):
            assert unix.ask(nobody).startswith(b"HTTP/1.1 200")
        assert len(sidecar.hot.known) == 1
        assert tcp.ask(nobody).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ((TOKEN.encode(), b"token-of-texts"), 401),
        ((b"localhost", b"localhorst"), 421),
        ((b"POST /v1/events", b"GET /v1/events"), 405),
        ((b"application/json", b"text/html"), 415),
        ((b"/v1/events", b"/v1/nothing"), 404),
        ((b"Host: localhost\r\n", b""), 400),
    ],
)
def test_a_head_that_differs_is_not_known(sidecar, change, status):
    known = request(b"POST /v1/events", ACTIVITY)
    with sidecar.connect() as connection:
        connection.ask(known)
        connection.ask(known)
        assert connection.ask(known.replace(*change, 1)).startswith(b"HTTP/1.1 %d" % status)


def test_a_token_that_is_no_longer_good_is_not_remembered(tmp_path):
    with SidecarProcess(tmp_path) as sidecar, sidecar.raw() as connection:
        asking = request(b"POST /v1/events", ACTIVITY).replace(TOKEN.encode(), sidecar.token.encode())
        for _ in range(3):
            connection.sendall(asking)
            assert connection.recv(4096).startswith(b"HTTP/1.1 202")
        sidecar.settings["token"] = '"another-token-for-tests"'
        sidecar.write()
        sidecar.signal(signal.SIGHUP)
        until(lambda: "was read again" in sidecar.said())
        connection.sendall(asking)
        assert connection.recv(4096).startswith(b"HTTP/1.1 401")


def test_a_connection_that_was_answered_at_once_and_then_says_nothing_is_closed(tmp_path):
    with (
        SidecarProcess(tmp_path, sidecar={"idle_timeout": "0.5"}) as sidecar,
        sidecar.raw(unix=True) as client,
    ):
        for _ in range(2):
            client.sendall(request(b"POST /v1/events", ACTIVITY))
            assert client.recv(4096).startswith(b"HTTP/1.1 202")
        assert client.recv(4096) == b""


def test_a_connection_that_was_answered_at_once_is_not_idle_while_it_waits_for_an_upstream(
    tmp_path, upstream
):
    upstream.rule(path="*/customers/*", delay=3.0)
    config = f'[destinations.kit]\ntype = "payment_kit"\nurl = "{upstream.url}"\naccess_key = "key"\n'
    with (
        SidecarProcess(tmp_path, config, {"idle_timeout": "0.5"}) as sidecar,
        sidecar.raw(unix=True) as client,
    ):
        client.sendall(head(b"GET /activities.add?" + PER))
        assert client.recv(4096).startswith(b"HTTP/1.1")
        client.sendall(head(b"GET /api/customers/c"))
        assert client.recv(4096).startswith(b"HTTP/1.1")


def test_a_url_is_bounded_behind_a_known_head_too(sidecar):
    with sidecar.connect() as connection:
        for length, status in ((10, 200), (30_000, 200), (40_000, 414)):
            asking = head(b"GET /activities.add?" + PER + b"&x=" + b"x" * length)
            assert connection.ask(asking).startswith(b"HTTP/1.1 %d" % status)


def test_what_is_known_is_bounded(sidecar):
    with sidecar.connect() as connection:
        for number in range(1100):
            asking = request(b"POST /v1/events", ACTIVITY, b"X-Trace: %d" % number)
            assert connection.ask(asking).startswith(b"HTTP/1.1 202")
        assert 0 < len(sidecar.hot.known) <= 1000
        sidecar.hot.forget()
        connection.ask(request(b"POST /v1/events", ACTIVITY, b"X-Trace: " + b"x" * 4000))
        assert not sidecar.hot.known


def mutated(draw, whole):
    """*whole* with something wrong in it, mostly around its lines' ends."""
    places = [at for mark in (b"\r\n", b" ", b"?", b":", b"&") for at in occurrences(whole, mark)]
    at = draw.choice(places) if draw.random() < 0.7 else draw.randrange(len(whole))
    piece = draw.choice(
        [
            b"",
            b"\r\n",
            b"\n",
            b"\r",
            b"?",
            b" ",
            b"#",
            b"%",
            b"\0",
            b"\xff",
            b" HTTP/1.1\r\n",
            b"\r\n\r\n",
            b"X: y\r\n",
            b":",
        ]
    )
    return whole[:at] + piece + whole[at + draw.randrange(3) :]  # fmt: skip


def occurrences(whole, mark):
    return [found.start() for found in re.finditer(re.escape(mark), whole)]


def test_nothing_gets_through_by_a_known_head_that_the_parser_would_refuse(sidecar):
    seed = int(os.environ.get("PER_AGENT_TEST_SEED", random.randrange(2**32)))
    print(f"seed {seed}")
    draw = random.Random(seed)
    goods = [
        request(b"POST /v1/events", ACTIVITY, b"X: a?b"),
        head(b"GET /activities.add?" + PER, b"X: y"),
        request(b"POST /api/meter-events?livemode=true", KIT, b"Referer: /?x HTTP/1.1"),
    ]

    def told(asking, *, known):
        sidecar.hot.forget()
        with sidecar.connect() as connection:
            for each in goods if known else []:
                assert connection.ask(each).startswith(b"HTTP/1.1 20")
            connection.socket.sendall(asking)
            connection.socket.shutdown(1)
            answers = []
            while answer := connection.answer():
                answers.append(plain(answer))
            return answers

    for _ in range(150):
        asking = mutated(draw, draw.choice(goods))
        assert told(asking, known=True) == told(asking, known=False), asking


# Identifiers that were seen


def test_a_repeat_is_told_from_a_new_event_on_both_ways(sidecar):
    before = sidecar.accepted()
    one = ACTIVITY[:-1] + b',"id":"seen"}'
    with sidecar.connect() as connection:
        for line in (b"POST /v1/events", b"POST /v1/events?wait=stored", b"POST /v1/events"):
            said = json.loads(connection.ask(request(line, one)).partition(b"\r\n\r\n")[2])
            assert (said["accepted"], said["ids"]) == (1, ["seen"])
    assert sidecar.accepted() == before + 1


@pytest.mark.parametrize(
    ("lines", "rejected"),
    [
        ([ACTIVITY, ACTIVITY.replace(b"u-17", b"u" * 70_000), ACTIVITY], [(1, 2)]),
        ([b"", ACTIVITY, b" ", ACTIVITY.replace(b"u-17", b"u" * 70_000), ACTIVITY], [(1, 4)]),
        ([ACTIVITY, b"", ACTIVITY + ACTIVITY], [(1, 3)]),
        ([b"", ACTIVITY + ACTIVITY, ACTIVITY], [(0, 2)]),
        ([ACTIVITY, METERED, b"7", ACTIVITY], [(2, 3)]),
    ],
    ids=["plain", "with blank lines", "two on a line", "two on a line after a blank one", "mixed"],
)
def test_lines_are_numbered_whether_they_are_plain_or_not(sidecar, lines, rejected):
    with sidecar.connect() as connection:
        answer = connection.ask(request(b"POST /v1/events", b"\n".join(lines), kind=b"application/x-ndjson"))
    said = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert [(each["position"], each["line"]) for each in said["rejected"]] == rejected
    assert [at for at, each in enumerate(said["ids"]) if each is None] == [at for at, _ in rejected]


def test_lines_are_numbered_over_all_the_pieces_that_are_read_at_once(sidecar):
    draw = random.Random(11)
    lines = [draw.choice([ACTIVITY] * 50 + [METERED, b"", b"{oops", b"[]"]) for _ in range(5000)]
    events = [(number, line) for number, line in enumerate(lines, 1) if line]
    bad = [(at, number) for at, (number, line) in enumerate(events) if line not in (ACTIVITY, METERED)]
    with sidecar.connect() as connection:
        answer = connection.ask(request(b"POST /v1/events", b"\n".join(lines), kind=b"application/x-ndjson"))
    said = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert [(each["position"], each["line"]) for each in said["rejected"]] == bad
    assert len(said["ids"]) == len(events)
    assert said["accepted"] == len(events) - len(bad)


def test_each_line_is_told_of_where_there_is_no_room_whatever_it_says(tmp_path):
    draw = random.Random(12)
    some = [ACTIVITY] * 50 + [METERED, b"", b" ", b"\r", b"{oops", b"[]", b" " + ACTIVITY, ACTIVITY + METERED]
    lines = [b"", ACTIVITY, *(draw.choice(some) for _ in range(5000)), ACTIVITY + ACTIVITY]
    with Fronted(tmp_path) as full, full.connect() as connection:
        full.agent.close()
        answer = connection.ask(request(b"POST /v1/events", b"\n".join(lines), kind=b"application/x-ndjson"))
    assert answer.startswith(b"HTTP/1.1 503")
    said = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert (said["accepted"], len(said["ids"])) == (0, sum(bool(line.strip()) for line in lines))


def test_what_there_is_no_room_for_is_not_read(tmp_path):
    metered = METERED[:-1] + b',"metadata":{"n":[' + b",".join([b"1.5"] * 2000) + b"]}}"
    body = b"\n".join([ACTIVITY, *[metered] * 900])
    began = time.perf_counter()
    RECORDS.decode_lines(body)
    reading = time.perf_counter() - began
    with Fronted(tmp_path) as full, full.connect() as connection, ThreadPoolExecutor(1) as pool:
        full.agent.close()
        waiting = pool.submit(longest_wait, full, until_told := threading.Event())
        answer = connection.ask(request(b"POST /v1/events", body, kind=b"application/x-ndjson"))
        until_told.set()
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["ids"] == [None] * 901
        assert waiting.result() < reading / 2


def longest_wait(sidecar, told):
    """Seconds that an answer to somebody else took at most, until *told*."""
    longest = 0.0
    with sidecar.connect() as other:
        while not told.is_set():
            began = time.perf_counter()
            assert other.ask(head(b"GET /healthz")).startswith(b"HTTP/1.1 ")
            longest = max(longest, time.perf_counter() - began)
    return longest


@pytest.mark.parametrize("kind", [b"application/x-ndjson", b"application/json"])
def test_when_there_is_no_room_each_event_is_told_of(tmp_path, kind):
    with Fronted(tmp_path) as full, full.connect() as connection:
        full.agent.close()
        events = [ACTIVITY] * 3000
        body = b"\n".join(events) if b"nd" in kind else b"[%b]" % b",".join(events)
        answer = connection.ask(request(b"POST /v1/events", body, kind=kind))
        assert answer.startswith(b"HTTP/1.1 503")
        said = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert (said["accepted"], said["ids"]) == (0, [None] * 3000)
        for _ in range(2):
            one = connection.ask(request(b"POST /v1/events", ACTIVITY))
            long = connection.ask(request(b"POST /v1/events?wait=accepted", ACTIVITY))
            assert plain(one) == plain(long)
            assert b'"ids":[null]' in one
