"""Requests that are none, that are two, or that come from those who may not: refused, and nobody else is harmed."""

import pytest
from abuse import ACTIVITY, accepts, ask, chunked, head, post, rest_of, statuses, unharmed
from sidecar_process import SidecarProcess
from waiting import until

PER = b"/activities.add?billingId=acme&userId=u&activityTypeId=t"
PER_TOKEN, REPORTING_TOKEN, KEY = "per-activity-token", "per-reporting-token", "blocklet-access-key"


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory):
    with SidecarProcess(tmp_path_factory.mktemp("s"), sidecar={"hosts": '["box.example"]'}) as running:
        yield running


@pytest.fixture(autouse=True)
def good_requests_go_on(sidecar):
    with unharmed(sidecar):
        yield


def lengths(*told):
    return b"\r\n".join(b"Content-Length: " + each for each in told)


SIZE = b"%d" % len(ACTIVITY)
CHUNKED = b"Transfer-Encoding: chunked"
MALFORMED = {
    "nothing like it": lambda _: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n",
    "HTTP/2": lambda _: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "a version to come": lambda s: head(s, b"GET " + PER, version=b"9.9"),
    "no version": lambda s: head(s, b"GET " + PER).replace(b"HTTP/1.1", b"HTTQ/1.1"),
    "no method of HTTP's": lambda s: head(s, b"BREW " + PER),
    "a tunnel": lambda s: head(s, b"CONNECT example.com:443"),
    "a space in the path": lambda s: head(s, b"GET /activities.add ?x"),
    "a control character in the path": lambda s: head(s, b"GET /activities.add\x07"),
    "a NUL in a header": lambda s: head(s, b"GET " + PER, b"X-A: a\0b"),
    "a space before the colon": lambda s: head(s, b"GET " + PER, b"X-A : b"),
    "a header without a colon": lambda s: head(s, b"GET " + PER, b"nonsense"),
    "a header without a name": lambda s: head(s, b"GET " + PER, b": b"),
    "a folded header": lambda s: head(s, b"GET " + PER, b"X-A: a\r\n b"),
    "a bare CR": lambda s: head(s, b"GET " + PER, b"X-A: a\rX-B: b"),
    "bare LFs": lambda s: head(s, b"GET " + PER).replace(b"\r\n", b"\n"),
    "a length and chunks": lambda s: post(s, lengths(SIZE), CHUNKED),
    "chunks and a length": lambda s: post(s, CHUNKED, lengths(b"0"), body=chunked(ACTIVITY)),
    "two lengths": lambda s: post(s, lengths(SIZE, b"5")),
    "the same length twice": lambda s: post(s, lengths(SIZE, SIZE)),
    "a list of lengths": lambda s: post(s, lengths(SIZE + b", " + SIZE)),
    "a negative length": lambda s: post(s, lengths(b"-1")),
    "a length with a sign": lambda s: post(s, lengths(b"+" + SIZE)),
    "a length in hexadecimal": lambda s: post(s, lengths(b"0x40")),
    "a length beyond all numbers": lambda s: post(s, lengths(b"9" * 30)),
    "an empty length": lambda s: post(s, lengths(b"")),
    "chunks that are not the last coding": lambda s: post(
        s, b"Transfer-Encoding: chunked, identity", body=chunked(ACTIVITY)
    ),
    "chunks by another name": lambda s: post(s, b"Transfer-Encoding: xchunked", body=chunked(ACTIVITY)),
    "a chunk without a size": lambda s: post(s, CHUNKED, body=b"zz\r\n" + ACTIVITY + b"\r\n0\r\n\r\n"),
    "a chunk of a negative size": lambda s: post(s, CHUNKED, body=b"-5\r\n" + ACTIVITY + b"\r\n0\r\n\r\n"),
    "a chunk beyond all numbers": lambda s: post(s, CHUNKED, body=b"f" * 17 + b"\r\n" + ACTIVITY),
    "a chunk that is longer than told": lambda s: post(s, CHUNKED, body=b"3\r\n" + ACTIVITY + b"\r\n0\r\n\r\n"),
    "a chunk that ends in LF": lambda s: post(s, CHUNKED, body=chunked(ACTIVITY).replace(b"\r\n", b"\n")),
}  # fmt: skip


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
@pytest.mark.parametrize("request_of", MALFORMED.values(), ids=MALFORMED)
def test_what_is_not_http_is_refused_and_the_connection_closed(sidecar, request_of, unix):
    with accepts(sidecar, 0):
        answer = ask(sidecar, request_of(sidecar), unix=unix)
        assert statuses(answer) == [400]
        assert b"connection: close" in answer


@pytest.mark.parametrize("request_of", MALFORMED.values(), ids=MALFORMED)
def test_a_good_request_before_it_is_answered_first(sidecar, request_of):
    with accepts(sidecar, 1):
        answer = ask(sidecar, head(sidecar, b"GET " + PER) + request_of(sidecar))
        assert statuses(answer) == [200, 400]


def test_what_follows_a_last_request_is_not_looked_at(sidecar):
    last = head(sidecar, b"GET " + PER, b"Connection: close")
    with accepts(sidecar, 1):
        assert statuses(ask(sidecar, last + head(sidecar, b"GET " + PER))) == [200]


def test_a_body_is_never_the_next_request(sidecar):
    inner = head(sidecar, b"GET " + PER)
    with accepts(sidecar, 0):
        for status, outer in (
            (400, post(sidecar, b"Connection: close", body=inner)),
            (401, post(sidecar, b"Connection: close", body=inner).replace(b"Bearer", b"Digest", 1)),
            (404, post(sidecar, b"Connection: close", body=inner, path=b"/nowhere")),
            (405, post(sidecar, b"Connection: close", body=inner, path=b"/v1/status")),
            (415, post(sidecar, b"Connection: close", b"Content-Encoding: br", body=inner)),
        ):
            assert statuses(ask(sidecar, outer)) == [status]


def test_a_trailer_is_no_header(sidecar):
    body = chunked(ACTIVITY).removesuffix(b"\r\n")
    token = b"Authorization: Bearer " + sidecar.token.encode()
    request = post(sidecar, CHUNKED, b"Connection: close", body=body + token + b"\r\n\r\n")
    with accepts(sidecar, 1):
        assert statuses(ask(sidecar, request)) == [202]
    with accepts(sidecar, 0):
        assert statuses(ask(sidecar, request.replace(token + b"\r\n", b"", 1))) == [401]


# What clients do that is unusual, and good


def test_requests_sent_ahead_are_answered_in_their_order(sidecar):
    names = [b"p%d" % number for number in range(50)]
    bodies = [ACTIVITY[:-1] + b',"id":"' + name + b'"}' for name in names]
    requests = b"".join(post(sidecar, body=body) for body in bodies)
    with accepts(sidecar, 51):
        answers = ask(sidecar, requests + head(sidecar, b"GET " + PER, b"Connection: close"))
    assert statuses(answers) == [202] * 50 + [200]
    places = [answers.index(b'"' + name + b'"') for name in names]
    assert places == sorted(places)


def test_who_sends_too_far_ahead_gets_the_first_answers_and_is_told(sidecar):
    requests = head(sidecar, b"GET " + PER) * 1000
    with sidecar.raw() as connection:
        connection.sendall(requests)
        told = statuses(rest_of(connection))
    assert told[-1] == 503
    assert set(told[:-1]) == {200}
    with accepts(sidecar, 0):
        assert 100 <= len(told) <= 1001


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_head_may_come_byte_by_byte(sidecar, version):
    request = head(sidecar, b"GET " + PER, b"Connection: close", version=version)
    with accepts(sidecar, 1), sidecar.raw() as connection:
        for at in range(len(request)):
            connection.sendall(request[at : at + 1])
        assert statuses(rest_of(connection)) == [200]


def test_chunks_may_be_of_any_size_and_carry_extensions(sidecar):
    pieces = [ACTIVITY[at : at + 1] for at in range(len(ACTIVITY))]
    extended = b'5;name=value;q="x;y"\r\n' + ACTIVITY[:5] + b"\r\n" + chunked(ACTIVITY[5:])
    with accepts(sidecar, 2):
        for body in (chunked(*pieces), extended):
            assert statuses(ask(sidecar, post(sidecar, CHUNKED, b"Connection: close", body=body))) == [202]


def test_who_asks_before_it_sends_is_told_to_go_on(sidecar):
    request = post(sidecar, b"Expect: 100-continue")
    with accepts(sidecar, 1), sidecar.raw() as connection:
        connection.sendall(request.removesuffix(ACTIVITY))
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(ACTIVITY)
        assert statuses(rest_of(connection)) == [202]


def test_who_asks_before_it_sends_too_much_is_told_so_and_the_connection_ends(sidecar):
    request = head(sidecar, b"POST /v1/events", b"Expect: 100-continue", b"Content-Length: 999999999")
    with accepts(sidecar, 0), sidecar.raw() as connection:
        connection.sendall(request)
        answer = rest_of(connection)
        assert statuses(answer) == [413]
        assert b"connection: close" in answer


# Java's HttpClient offers HTTP/2 with every request of a connection that has not said no: with bodies, too.
OFFERS = [
    (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAAAAIAAAAA"),
    (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: eA=="),
]


@pytest.mark.parametrize("offer", OFFERS, ids=["h2c", "websocket"])
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_who_offers_another_protocol_does_without_it(sidecar, offer, step):
    requests = [
        head(sidecar, b"GET " + PER, *offer),
        post(sidecar, *offer),
        post(sidecar, CHUNKED, *offer, body=chunked(ACTIVITY[:9], ACTIVITY[9:])),
        post(sidecar, *offer, body=b""),
        post(sidecar, *offer, body=head(sidecar, b"GET " + PER)),
        post(sidecar, b"Connection: close"),
    ]
    stream = b"".join(requests)
    with accepts(sidecar, 4), sidecar.raw() as connection:
        for at in range(0, len(stream), step):
            connection.sendall(stream[at : at + step])
        assert statuses(rest_of(connection)) == [200, 202, 202, 400, 400, 202]


def test_an_offer_does_not_hide_a_broken_body(sidecar):
    broken = post(sidecar, CHUNKED, *OFFERS[0], body=b"zz\r\n" + ACTIVITY + b"\r\n0\r\n\r\n")
    with accepts(sidecar, 0):
        assert statuses(ask(sidecar, broken)) == [400]


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_who_stops_sending_may_still_hear_the_answer(sidecar, unix):
    stored = post(sidecar, path=b"/v1/events?wait=stored")
    with accepts(sidecar, 3), sidecar.raw(unix=unix) as connection:
        connection.sendall(stored * 3)
        connection.shutdown(1)
        assert statuses(rest_of(connection)) == [202] * 3


def test_an_upstream_is_not_kept_busy_for_a_client_that_may_be_gone(tmp_path, upstream):
    upstream.rule(path="*/customers/*", delay=60)
    config = f'[destinations.kit]\ntype = "payment_kit"\nurl = "{upstream.url}"\naccess_key = "{KEY}"\n'
    with SidecarProcess(tmp_path, config) as running:
        with running.raw() as connection:
            connection.sendall(head(running, b"GET /api/customers/c"))
            until(lambda: upstream.score().requests)
            connection.shutdown(1)
            assert rest_of(connection, 20) == b""
        assert "Traceback" not in running.said()


def test_half_a_request_is_none(sidecar):
    whole = post(sidecar)
    with accepts(sidecar, 0):
        for end in (10, whole.index(ACTIVITY) - 2, whole.index(ACTIVITY), len(whole) - 1):
            with sidecar.raw() as connection:
                connection.sendall(whole[:end])
                connection.shutdown(1)
                assert rest_of(connection) == b""


# Names and tokens


@pytest.mark.parametrize(
    "host", [b"evil.example", b"", b"localhost.evil.example", b"127.0.0.1.evil.example:80"]
)
def test_a_name_that_is_not_the_sidecars_is_refused_on_tcp_and_does_not_matter_on_the_socket(sidecar, host):
    request = head(sidecar, b"GET " + PER, b"Connection: close", host=host)
    with accepts(sidecar, 1):
        assert statuses(ask(sidecar, request)) == [421]
        assert statuses(ask(sidecar, request, unix=True)) == [200]


@pytest.mark.parametrize(
    "host", [b"localhost", b"LOCALHOST:1", b"127.0.0.1:99", b"[::1]", b"box.example", b"Box.Example:80"]
)
def test_the_sidecars_own_names_are_taken(sidecar, host):
    with accepts(sidecar, 1):
        assert statuses(ask(sidecar, head(sidecar, b"GET " + PER, b"Connection: close", host=host))) == [200]


def test_a_request_names_one_host_and_one_credential(sidecar):
    good = head(sidecar, b"GET " + PER, b"Connection: close")
    token = b"Authorization: Bearer " + sidecar.token.encode() + b"\r\n"
    with accepts(sidecar, 0):
        for unix in (False, True):
            for twice in (b"Host: localhost\r\n", token, token.replace(b"Bearer", b"Basic")):
                doubled = good.replace(b"Connection", twice + b"Connection")
                assert statuses(ask(sidecar, doubled, unix=unix)) == [400]
        for version in (b"1.0", b"1.1"):
            nameless = good.replace(b"Host: localhost\r\n", b"").replace(b"1.1", version)
            assert statuses(ask(sidecar, nameless)) == [400]


def shape(answer):
    return set(answer.json())


WRONG = [
    {},
    {"authorization": "Bearer wrong"},
    {"authorization": "Bearer"},
    {"authorization": "Basic {token}"},
    {"authorization": "{token}"},
    {"authorization": "Bearer {token} x"},
    {"proxy-authorization": "Bearer wrong"},
    {"proxy-authorization": "Basic {token}"},
    {"x-authorization": "Bearer {token}"},
    {"cookie": "token={token}"},
]


@pytest.mark.parametrize("headers", WRONG, ids=[str(each) for each in WRONG])
def test_who_cannot_prove_itself_is_told_so_in_its_own_shape(sidecar, headers):
    brought = {name: value.format(token=sidecar.token) for name, value in headers.items()}
    event = {"event_name": "t", "identifier": "i", "payload": {"customer_id": "c", "value": "1"}}
    with accepts(sidecar, 0), sidecar.tcp(None) as client:
        client.headers.update(brought)
        answers = [
            (client.get(PER.decode()), {"ok", "error", "message"}),
            (client.post(PER.decode()), {"ok", "error", "message"}),
            (client.get("/reports.get"), {"ok", "error", "message"}),
            (client.post("/api/meter-events", json=event), {"error"}),
            (client.get("/api/meters"), {"error"}),
            (client.post("/v1/events", content=ACTIVITY), {"type", "title", "status", "detail"}),
            (
                client.post("/v1/dead-letters/purge", json={"all": True}),
                {"type", "title", "status", "detail"},
            ),
            (client.get("/metrics"), {"type", "title", "status", "detail"}),
            (client.get("/nowhere"), {"type", "title", "status", "detail"}),
            (client.get(f"/v1/status?token={sidecar.token}"), {"type", "title", "status", "detail"}),
        ]
    for answer, expected in answers:
        assert answer.status_code == 401
        assert shape(answer) == expected
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert sidecar.token not in answer.text


def test_each_upstreams_token_is_good_for_its_own_wire_form_only(tmp_path):
    config = (
        f'[destinations.per]\ntype = "per"\nurl = "http://127.0.0.1:9"\nactivity_token = "{PER_TOKEN}"\n'
        f'reporting_token = "{REPORTING_TOKEN}"\n[destinations.kit]\ntype = "payment_kit"\n'
        f'url = "http://127.0.0.1:9"\naccess_key = "{KEY}"\n'
    )
    event = {"event_name": "t", "identifier": "i", "payload": {"customer_id": "c", "value": "1"}}

    def told(client):
        return [
            client.get(PER.decode()).status_code,
            client.post("/api/meter-events", json=event).status_code,
            client.post("/v1/events", content=ACTIVITY).status_code,
            client.get("/v1/books").status_code,
        ]

    with SidecarProcess(tmp_path, config) as running:
        seen = {}
        for token in (PER_TOKEN, REPORTING_TOKEN, KEY, running.token):
            with running.tcp(token) as client:
                seen[token] = told(client)
        both = {"authorization": "Bearer somebody-elses", "proxy-authorization": f"Bearer {running.token}"}
        with running.tcp(None) as client:
            client.headers.update(both)
            seen["both"] = told(client)
        said = running.said()
        assert not [token for token in (PER_TOKEN, REPORTING_TOKEN, KEY, running.token) if token in said]
    assert seen == {
        PER_TOKEN: [200, 401, 401, 401],
        REPORTING_TOKEN: [401, 401, 401, 401],
        KEY: [401, 200, 401, 401],
        running.token: [200, 200, 202, 200],
        "both": [200, 200, 202, 200],
    }


@pytest.mark.parametrize("wait", ["", "Stored", "delivered", "stored&wait=stored"])
def test_a_wrong_wait_is_told_before_anything_is_accepted_in_each_form(sidecar, wait):
    event = {"event_name": "t", "identifier": "i", "payload": {"customer_id": "c", "value": "1"}}
    with accepts(sidecar, 0), sidecar.client() as client:
        for answer in (
            client.get(f"{PER.decode()}&wait={wait}"),
            client.post(
                f"/activities.add?wait={wait}", data={"billingId": "a", "userId": "u", "activityTypeId": "t"}
            ),
            client.post(f"/api/meter-events?wait={wait}", json=event),
            client.post(f"/v1/events?wait={wait}", content=ACTIVITY),
        ):
            assert answer.status_code == 400
            assert "wait" in answer.text
