"""The proxy: bytes up as they came, bytes down as they came, and nothing that is ours, or broken, for whole."""

import gzip
import json
import select
import socket
import threading
import time

import pytest
from recorder_socket import OK, RecorderSocket
from serving import Answered, Served, drained, received
from waiting import until

from per_agent.sidecar.body import bounded
from per_agent.sidecar.proxy import Proxy

KEY = "blocklet-z1configured"
CONFIGURED = [b"Bearer blocklet-z1configured"]
MANY = 64 * 1024 * 1024  # bytes: more than all buffers on the way can hold
CHUNKED = (
    b"POST /api/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
)


@pytest.fixture
def recorder():
    with RecorderSocket() as recorder:
        yield recorder


@pytest.fixture
def served(recorder):
    with serving(recorder.url) as served:
        yield served


def serving(address, timeout=20.0, authorized_by="socket", **more):
    proxy = Proxy("payment_kit", address, lambda: KEY, timeout=lambda: timeout, **more)
    return Served(proxy, proxy.close, authorized_by)


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


# Up


TARGETS = [
    "/api/meters",
    "/api/meters/a%2Fb%7Ec~d%20e%c3%a9",
    "/api/meters/a+b;v=1,2:@!$&'()*=",
    "/api//meters//",
    "/api/.a/b../...%2F%252e%252e",
    "/api/x?q=a+b%20c&q=a&q=&&=&q",
    '/api/x?a=%2F%7E~/?;:@[]|^`{}\\"<>',
    "/api/x?livemode=true&livemode=false",
    "/api/%",
    "/api/%zz?%",
    "/api/" + "x" * 9000,
]


@pytest.mark.parametrize("mount", ["", "/", "/app/pay"])
def test_path_and_query_arrive_in_the_very_bytes_that_came(recorder, mount):
    with serving(recorder.url + mount) as served:
        for target in TARGETS:
            assert served.get(target).status == 200
    lines = [head[0].decode() for head in recorder.heads]
    assert lines == [f"GET {mount.rstrip('/')}{target} HTTP/1.1" for target in TARGETS]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_every_method_goes_up_with_its_body(served, recorder, method):
    answer = served.get("/api/x", method=method, body=b'{"a": 1.0}\x00\xff\r\n')
    assert (answer.status, answer.body) == (200, b"ok")
    assert recorder.heads[-1][0].startswith(method.encode() + b" ")
    assert recorder.bodies == [b'{"a": 1.0}\x00\xff\r\n']
    assert recorder.values(b"content-length") == [b"14"]
    assert recorder.values(b"transfer-encoding") == []


def test_a_request_without_a_body_goes_up_without_one(served, recorder):
    served.get("/api/x", method="POST")
    assert recorder.values(b"content-length") == recorder.values(b"transfer-encoding") == []
    served.get("/api/x", "Content-Length: 0", method="POST")
    assert recorder.values(b"content-length") == [b"0"]


def test_a_chunked_body_goes_up_in_chunks(served, recorder):
    assert Answered(served.ask(CHUNKED)).status == 200
    assert recorder.values(b"transfer-encoding") == [b"chunked"]
    assert recorder.values(b"content-length") == []
    assert b"".join(recorder.bodies[0].split(b"\r\n")[1:-3:2]) == b"hello world"


def test_a_transfer_encoding_that_is_not_undone_is_not_passed_on(served, recorder):
    answer = Answered(served.ask(CHUNKED.replace(b": chunked", b": gzip, chunked")))
    assert answer.status == 501
    assert recorder.requests == []


def test_headers_go_up_as_they_are_and_none_is_added(served, recorder):
    served.get(
        "/api/x",
        "Accept: text/html;q=0.1, */*",
        "X-Twice: a",
        "X-Twice: b, c",
        "X-Bytes: caf\xe9",
        "X-Component-Sig: 00ff",
        "X-Component-Did: z8ia",
        "Cookie: a=b; login_token=ey",
        "Expect-CT: x",
    )
    port = recorder.port
    assert sorted(recorder.heads[0][1:]) == [
        b"accept: text/html;q=0.1, */*",
        b"cookie: a=b; login_token=ey",
        b"expect-ct: x",
        b"host: 127.0.0.1:%d" % port,
        b"x-bytes: caf\xe9",
        b"x-component-did: z8ia",
        b"x-component-sig: 00ff",
        b"x-twice: a",
        b"x-twice: b, c",
    ]


def test_what_is_between_neighbours_stays_between_them(served, recorder):
    raw = (
        b"GET /api/x HTTP/1.1\r\nHost: h\r\nConnection: close, X-Once , keep-alive\r\nX-Once: 1\r\nTE: trailers\r\n"
        b"Keep-Alive: timeout=5\r\nProxy-Connection: x\r\nProxy-Authorization: Bearer sidecar-token\r\n"
        b"Trailer: X-T\r\nX-Stays: 1\r\n\r\n"
    )
    assert Answered(served.ask(raw)).status == 200
    names = {line.partition(b":")[0] for line in recorder.heads[0][1:]}
    assert names == {b"host", b"x-stays", b"authorization"}
    assert b"sidecar-token" not in recorder.requests[0]


def test_a_body_keeps_its_length_whatever_the_connection_header_names(served, recorder):
    raw = b"POST /api/x HTTP/1.1\r\nHost: h\r\nConnection: close, content-length\r\nContent-Length: 3\r\n\r\nabc"
    assert Answered(served.ask(raw)).status == 200
    assert recorder.bodies == [b"abc"]


def test_nobody_says_for_the_gateway_who_a_user_is(served, recorder):
    served.get(
        "/api/x",
        "X-User-Did: z1admin",
        "x-user-role: owner",
        "X_User_Role: owner",
        "X-User: u",
        "X-Users-Name: n",
    )
    names = {line.partition(b":")[0] for line in recorder.heads[0][1:]}
    assert names == {b"host", b"x-user", b"x-users-name", b"authorization"}


@pytest.mark.parametrize(
    ("authorized_by", "headers", "query", "expected"),
    [
        ("socket", [], "", CONFIGURED),
        ("proxy-header", [], "", CONFIGURED),
        ("header", ["Authorization: Bearer sidecar-token"], "", CONFIGURED),
        ("header", ["authorization: bearer sidecar-token", "Authorization: Basic eA=="], "", CONFIGURED),
        ("socket", ["Authorization: Bearer blocklet-z9own"], "", [b"Bearer blocklet-z9own"]),
        ("proxy-header", ["Authorization: Basic eA=="], "", [b"Basic eA=="]),
        ("socket", ["Cookie: a=b; login_token=ey"], "", []),
        ("socket", ["Cookie: a=b", "Cookie: login_token=ey"], "", []),
        ("header", ["Authorization: Bearer sidecar-token", "Cookie: login_token=ey"], "", []),
        ("socket", ["Cookie: x_login_token=ey; login_tokens=x"], "", CONFIGURED),
        ("socket", ["X-Component-Sig: 00ff"], "", []),
        ("header", ["Authorization: Bearer sidecar-token", "X-Component-Sig: 00ff"], "", []),
        ("socket", ["X-Component-Did: z8ia"], "", CONFIGURED),
        ("socket", [], "?a=b&access_token=x", []),
        ("socket", [], "?x_access_token=x", CONFIGURED),
    ],
)
def test_a_token_goes_up_from_one_place_only(recorder, authorized_by, headers, query, expected):
    with serving(recorder.url, authorized_by=authorized_by) as served:
        assert served.get("/api/x" + query, *headers).status == 200
    assert recorder.values(b"authorization") == expected
    assert b"sidecar-token" not in recorder.requests[0]


def test_the_credential_is_asked_for_each_time_and_may_be_missing(recorder):
    tokens = iter(["one", "two", None])
    proxy = Proxy("per", recorder.url, lambda: next(tokens), timeout=lambda: 20.0)
    with Served(proxy, proxy.close) as served:
        for expected in ([b"Bearer one"], [b"Bearer two"], []):
            served.get("/reports.get")
            assert recorder.values(b"authorization") == expected


def test_another_sidecar_is_told_who_passes_on_and_gets_the_callers_own_beside_it(tmp_path):
    path = str(tmp_path / "s")
    with (
        RecorderSocket(path=path) as recorder,
        serving("unix:" + path, presented="proxy-authorization") as served,
    ):
        assert served.get("/api/x?y", "Authorization: Bearer blocklet-z9own").status == 200
        assert recorder.values(b"authorization") == [b"Bearer blocklet-z9own"]
        assert recorder.values(b"proxy-authorization") == CONFIGURED
        assert recorder.values(b"host") == [b"localhost"]
        served.authorized_by = "header"
        served.get("/api/x?y", "Authorization: Bearer sidecar-token", "X-Component-Sig: 00ff")
        assert recorder.values(b"authorization") == []
        assert recorder.values(b"proxy-authorization") == CONFIGURED


def test_trace_is_not_passed_on_since_its_answer_shows_the_credential(served, recorder):
    answer = served.get("/api/x", method="TRACE")
    assert (answer.status, json.loads(answer.body)) == (501, {"error": "TRACE is not passed on"})
    assert recorder.requests == []


def test_proxies_of_the_environment_are_not_asked(recorder, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    with serving(recorder.url) as served:
        assert served.get("/api/x").status == 200


def test_connections_are_kept_and_each_answer_is_its_own_requests():
    def echo(connection, request):
        target = request.split(b" ", 2)[1]
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(target), target))

    with RecorderSocket(echo) as recorder, serving(recorder.url) as served:
        for n in range(5):
            assert served.get(f"/api/{n}").body == b"/api/%d" % n
        assert recorder.connections == 1
        answers = {}
        threads = [
            threading.Thread(target=lambda n=n: answers.update({n: served.get(f"/api/{n}").body}))
            for n in range(40)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == {n: b"/api/%d" % n for n in range(40)}


# Down


def test_status_headers_and_body_come_back_as_they_are(served, recorder):
    packed = gzip.compress(b"never unpacked" * 100)
    recorder.answer = (
        b"HTTP/1.1 418 I'm a teapot\r\nContent-Type: text/x; charset=weird\r\nContent-Encoding: gzip\r\n"
        b"Set-Cookie: a=1; Path=/\r\nset-cookie: b=2; Expires=Wed, 09 Jun 2031 10:18:14 GMT\r\nX-Bytes: caf\xe9\r\n"
        b"Server: nginx\r\nX-User-Did: told\r\nX-Empty:\r\nContent-Length: %d\r\n\r\n%b"
        % (len(packed), packed)
    )
    answer = served.get("/api/x")
    assert answer.status == 418
    assert answer.body == packed
    assert [each for each in answer.headers if each[0] not in (b"date", b"connection")] == [
        (b"content-type", b"text/x; charset=weird"),
        (b"content-encoding", b"gzip"),
        (b"set-cookie", b"a=1; Path=/"),
        (b"set-cookie", b"b=2; Expires=Wed, 09 Jun 2031 10:18:14 GMT"),
        (b"x-bytes", b"caf\xe9"),
        (b"server", b"nginx"),
        (b"x-user-did", b"told"),
        (b"x-empty", b""),
        (b"content-length", b"%d" % len(packed)),
    ]


def test_there_is_one_date_in_an_answer(served, recorder):
    recorder.answer = b"HTTP/1.1 200 OK\r\nDate: Wed, 09 Jun 2021 10:18:14 GMT\r\nContent-Length: 2\r\n\r\nok"
    assert len(served.get("/api/x").all(b"date")) == 1


def test_what_is_between_the_proxy_and_the_upstream_stays_there(served, recorder):
    recorder.answer = (
        b"HTTP/1.1 200 OK\r\nConnection: X-Once\r\nX-Once: 1\r\nKeep-Alive: timeout=5\r\n"
        b"Proxy-Authenticate: Basic\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nok"
    )
    answer = served.get("/api/x")
    assert {name for name, _ in answer.headers} == {b"date", b"content-length", b"connection"}
    assert answer.all(b"connection") == [b"close"]


@pytest.mark.parametrize("location", ["/login", "https://elsewhere.example/", "http://[::1", "//", "ht!tp:"])
def test_a_redirect_comes_back_as_it_is(served, recorder, location):
    recorder.answer = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
    answer = served.get("/api/x")
    assert answer.status == 302
    assert answer.all(b"location") == [location.encode()]
    assert len(recorder.requests) == 1


def test_cookies_are_not_kept_for_the_next_request(served, recorder):
    recorder.answer = b"HTTP/1.1 200 OK\r\nSet-Cookie: login_token=x; Path=/\r\nContent-Length: 2\r\n\r\nok"
    for _ in range(2):
        served.get("/api/x")
        assert recorder.values(b"cookie") == []


def test_a_chunked_answer_comes_back_in_chunks(served, recorder):
    recorder.answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    answer = served.get("/api/x")
    assert (answer.is_chunked, answer.is_whole, answer.body) == (True, True, b"hello world")
    assert answer.all(b"content-length") == []


def test_an_answer_that_ends_with_its_connection_is_passed_on_whole(served, recorder):
    def say_and_close(connection, _):
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello")
        connection.shutdown(socket.SHUT_WR)

    recorder.answer = say_and_close
    answer = served.get("/api/x")
    assert (answer.status, answer.body, answer.is_whole) == (200, b"hello", True)


def test_an_answer_to_head_says_how_long_the_body_would_be(served, recorder):
    recorder.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n"
    answer = served.get("/api/x", method="HEAD")
    assert (answer.status, answer.all(b"content-length"), answer.body) == (200, [b"1234"], b"")
    recorder.answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert served.get("/api/x", method="HEAD").status == 200


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
@pytest.mark.parametrize("length", [b"", b"Content-Length: 1234\r\n"])
def test_an_answer_without_a_body_is_whole_without_one(served, recorder, status, length):
    recorder.answer = b"HTTP/1.1 " + status + b"\r\nETag: x\r\n" + length + b"\r\n"
    with served.connect() as connection:
        for _ in range(2):  # on one connection: had the first no end, the second would be lost in it
            connection.sendall(b"GET /api/x HTTP/1.1\r\nHost: h\r\n\r\n")
            answer = Answered(received(connection, b"\r\n\r\n"))
            assert (answer.status, answer.body) == (int(status[:3]), b"")
            assert answer.all(b"etag") == [b"x"]


def test_interim_answers_are_not_taken_for_the_answer(served, recorder):
    recorder.answer = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK
    assert served.get("/api/x").status == 200


def test_a_status_that_no_server_can_pass_on_is_a_bad_gateway(served, recorder):
    recorder.answer = b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n"
    assert served.get("/api/x").status == 502


def test_what_is_no_http_is_a_bad_gateway(served, recorder):
    recorder.answer = b"SSH-2.0-OpenSSH_9.2\r\n\r\n"
    answer = served.get("/api/x")
    assert answer.status == 502
    assert "payment_kit gave no answer" in json.loads(answer.body)["error"]


# As it comes, both ways


def test_an_answer_comes_down_while_the_upstream_still_speaks(served, recorder):
    heard = threading.Event()

    def in_two_parts(connection, _):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
        assert heard.wait(20)
        connection.sendall(b"after")

    recorder.answer = in_two_parts
    with served.connect() as connection:
        connection.sendall(b"GET /api/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        received(connection, b"first")
        heard.set()
        assert drained(connection) == b"after"


def test_a_body_goes_up_while_the_client_still_speaks():
    parts = []
    heard = threading.Event()

    def read(connection, head):
        rest = head.partition(b"\r\n\r\n")[2]
        parts.append(rest or connection.recv(100))
        heard.set()
        parts.append(connection.recv(100))
        connection.sendall(OK)

    with (
        RecorderSocket(read, reads="heads") as recorder,
        serving(recorder.url) as served,
        served.connect() as client,
    ):
        client.sendall(
            b"POST /api/x HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\nConnection: close\r\n\r\nfirst"
        )
        assert heard.wait(20)
        client.sendall(b"after")
        assert Answered(drained(client)).status == 200
    assert parts == [b"first", b"after"]


def test_a_client_that_may_speak_only_when_told_to_is_told_to(served, recorder):
    with served.connect() as client:
        client.sendall(
            b"POST /api/x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        assert received(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"hello")
        assert Answered(drained(client)).status == 200
    assert recorder.bodies == [b"hello"]
    assert recorder.values(b"expect") == []


def test_nobody_is_told_to_speak_when_there_is_nobody_to_hear_it():
    with serving(f"http://127.0.0.1:{closed_port()}") as served, served.connect() as client:
        client.sendall(
            b"POST /api/x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        )
        assert received(client, b"\r\n\r\n").startswith(b"HTTP/1.1 502 ")


def test_an_upstream_that_reads_nothing_slows_its_client_and_is_given_up():
    asleep = threading.Event()

    def read_nothing(connection, _):
        asleep.wait(60)

    with RecorderSocket(read_nothing, reads="heads") as recorder:
        with serving(recorder.url, timeout=2.0) as served, served.connect() as client:
            client.sendall(b"POST /api/x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % MANY)
            sent, answered = 0, False
            while sent < MANY and not answered:
                readable, writable, _ = select.select([client], [client], [], 60)
                answered = bool(readable)
                if writable and not answered:
                    sent += client.send(bytes(65536))
            assert sent < MANY / 2
            assert received(client, b"\r\n\r\n").startswith(b"HTTP/1.1 504 ")
        asleep.set()


def test_a_client_that_reads_nothing_slows_its_upstream():
    sent, stuck = [], threading.Event()

    def speak_on(connection, _):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % MANY)
        connection.settimeout(1.0)
        try:
            while sum(sent) < MANY:
                sent.append(connection.send(bytes(65536)))
        except TimeoutError:
            stuck.set()

    with RecorderSocket(speak_on) as recorder, serving(recorder.url) as served, served.connect() as client:
        client.sendall(b"GET /api/x HTTP/1.1\r\nHost: h\r\n\r\n")
        assert stuck.wait(60)
    assert sum(sent) < MANY / 2


def test_large_bodies_arrive_whole_in_both_directions(recorder, served):
    large = bytes(range(256)) * 20_000
    recorder.answer = lambda connection, request: connection.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(large), request.partition(b"\r\n\r\n")[2])
    )
    answer = served.get("/api/x", method="PUT", body=large)
    assert answer.body == large


# Trouble


@pytest.mark.parametrize(
    ("path", "shape"),
    [("/api/x", {"error"}), ("/reports.get", {"ok", "error"})],
)
def test_an_upstream_that_is_away_is_told_in_the_shape_of_the_wire_form(path, shape):
    with serving(f"http://127.0.0.1:{closed_port()}") as served:
        answer = served.get(path)
    assert answer.status == 502
    told = json.loads(answer.body)
    assert told.keys() == shape
    assert told["error"].startswith("payment_kit cannot be reached (ConnectError")
    assert told["error"].endswith("; the request was not sent")
    assert KEY not in answer.raw.decode()


def test_an_upstream_that_hangs_up_may_have_received_the_request(served, recorder):
    recorder.answer = lambda connection, _: connection.shutdown(socket.SHUT_RDWR)
    answer = served.get("/api/x", method="POST", body=b"{}")
    assert answer.status == 502
    assert json.loads(answer.body)["error"].endswith("; it may have received the request")
    assert len(recorder.requests) == 1  # and it was not asked twice


def test_an_upstream_that_does_not_answer_is_given_up_after_the_timeout():
    with RecorderSocket(b"") as recorder, serving(recorder.url, timeout=0.5) as served:
        answer = served.get("/api/x")
    assert answer.status == 504
    told = json.loads(answer.body)["error"]
    assert told == "payment_kit did not answer within 0.5 s; it may have received the request"


def test_headers_that_drip_do_not_prolong_the_timeout():
    done = threading.Event()

    def drip(connection, _):
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while not done.wait(0.1):
            connection.sendall(b"X-Slow: 1\r\n")

    with RecorderSocket(drip) as recorder, serving(recorder.url, timeout=1.0) as served:
        assert served.get("/api/x").status == 504
        done.set()


def test_a_body_may_take_longer_than_the_timeout_as_long_as_it_goes_on():
    def drip(connection, _):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n")
        for _ in range(15):
            connection.sendall(b"x")
            time.sleep(0.2)

    with RecorderSocket(drip) as recorder, serving(recorder.url, timeout=2.0) as served:
        assert served.get("/api/x").body == b"x" * 15


def test_the_time_that_a_client_takes_is_not_the_upstreams():
    with (
        RecorderSocket() as recorder,
        serving(recorder.url, timeout=2.0) as served,
        served.connect() as client,
    ):
        client.sendall(b"POST /api/x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nConnection: close\r\n\r\n")
        time.sleep(2.5)
        client.sendall(b"{}")
        assert Answered(drained(client)).status == 200


@pytest.mark.parametrize("how", ["closed", "reset", "silent"])
@pytest.mark.parametrize(
    "framing", [b"Content-Length: 100\r\n\r\nhalf", b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"]
)
def test_an_answer_that_breaks_off_is_broken_off_for_the_client_too(how, framing):
    def break_off(connection, _):
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + framing)
        if how == "closed":
            connection.shutdown(socket.SHUT_RDWR)
        elif how == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()

    with RecorderSocket(break_off) as recorder, serving(recorder.url, timeout=1.0) as served:
        with (
            served.connect() as client
        ):  # kept alive: what breaks off does not read as "and now the next answer"
            client.sendall(b"GET /api/x HTTP/1.1\r\nHost: h\r\n\r\n")
            try:
                answer = Answered(drained(client))
            except ConnectionResetError:
                return
        assert answer.status == 200
        assert answer.body in (b"half", b"")  # a reset may overtake what was sent before it
        assert not answer.is_whole
        recorder.answer = OK
        assert served.get("/api/x").status == 200


def test_a_client_that_leaves_before_the_answer_takes_its_request_with_it():
    with RecorderSocket(b"") as recorder, serving(recorder.url, timeout=120.0) as served:
        with served.connect() as client:
            client.sendall(b"POST /api/x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}")
            until(lambda: recorder.requests)
        assert recorder.left.wait(20)


def test_a_client_that_leaves_within_its_body_takes_its_request_with_it():
    def read(connection, _):
        while connection.recv(65536):
            pass

    with RecorderSocket(read, reads="heads") as recorder, serving(recorder.url, timeout=120.0) as served:
        with served.connect() as client:
            client.sendall(b"POST /api/x HTTP/1.1\r\nHost: h\r\nContent-Length: 20\r\n\r\nhalf")
            until(lambda: recorder.requests)
        assert recorder.left.wait(20)


def test_a_chunked_body_that_breaks_off_is_not_ended_for_the_client():
    came = bytearray()

    def read(connection, head):
        came.extend(head)
        while piece := connection.recv(65536):
            came.extend(piece)

    with RecorderSocket(read, reads="heads") as recorder, serving(recorder.url, timeout=120.0) as served:
        with served.connect() as client:
            client.sendall(CHUNKED.partition(b"6\r\n")[0])
            until(lambda: b"hello" in came)
        assert recorder.left.wait(20)
    assert b"0\r\n\r\n" not in came


def test_a_client_that_leaves_within_its_body_and_the_answer_is_not_answered_on(tmp_path):
    gone = threading.Event()

    def answer_early(connection, _):
        connection.shutdown(socket.SHUT_RD)  # on a Unix socket, whoever writes is told at once
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while not gone.wait(0.01):
                connection.sendall(b"4\r\nmore\r\n")
        except OSError:
            gone.set()

    path = str(tmp_path / "s")
    with RecorderSocket(answer_early, path, reads="heads"), serving("unix:" + path) as served:
        with served.connect() as client:
            client.sendall(b"POST /api/x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % MANY)
            # It speaks on until it is answered: what shuts its ear is noticed by who speaks into it.
            while not select.select([client], [], [], 0.01)[0]:
                client.sendall(bytes(10_000))
            received(client, b"more")
        reached = gone.wait(20)
        gone.set()
    assert reached


def test_a_client_that_leaves_within_the_answer_is_not_answered_on():
    def speak_on(connection, _):
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"4\r\nmore\r\n")
            time.sleep(0.01)

    gone = threading.Event()

    def speak(connection, request):
        try:
            speak_on(connection, request)
        except OSError:
            gone.set()

    with RecorderSocket(speak) as recorder, serving(recorder.url) as served:
        with served.connect() as client:
            client.sendall(b"GET /api/x HTTP/1.1\r\nHost: h\r\n\r\n")
            received(client, b"more")
        assert gone.wait(20)


def test_a_body_that_is_too_long_is_refused_by_who_bounds_it():
    with RecorderSocket(reads="heads") as recorder:
        proxy = Proxy("payment_kit", recorder.url, lambda: KEY, timeout=lambda: 20.0)
        recorder.answer = b""

        async def app(scope, receive, send):
            await proxy(scope, bounded(receive, 10), send)

        with Served(app, proxy.close) as served:
            answer = Answered(served.ask(CHUNKED))
        assert answer.status == 413
        assert recorder.left.wait(20)


def test_an_answer_that_comes_before_the_body_is_through_is_passed_on():
    def refuse(connection, _):
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig")
        while connection.recv(65536):
            pass

    with RecorderSocket(refuse, reads="heads") as recorder, serving(recorder.url) as served:
        answer = served.get("/api/x", method="POST", body=bytes(1_000_000))
    assert (answer.status, answer.body) == (413, b"big")


def test_requests_beyond_what_may_be_under_way_are_told_to_come_again():
    with RecorderSocket(b"") as recorder, serving(recorder.url, timeout=60.0) as served:
        waiting = [served.connect() for _ in range(64)]
        for client in waiting:
            client.sendall(b"GET /api/x HTTP/1.1\r\nHost: h\r\n\r\n")
        until(lambda: len(recorder.requests) == 64)
        answer = served.get("/api/x")
        assert answer.status == 503
        assert answer.all(b"retry-after") == [b"1"]
        for client in waiting:
            client.close()
        recorder.answer = OK
        until(lambda: served.get("/api/x").status == 200)


def test_a_meter_made_at_the_upstream_comes_back_as_the_upstream_tells_it(upstream):
    with serving(upstream.url + "/app") as served:
        upstream.settings(access_key=KEY)
        body = b'{"name": "Calls", "event_name": "calls", "unit": "call"}'
        made = served.get(
            "/api/meters?livemode=true", "Content-Type: application/json", method="POST", body=body
        )
        assert (made.status, json.loads(made.body)["event_name"]) == (200, "calls")
        found = json.loads(served.get("/api/meters/calls?livemode=true").body)
        assert found == json.loads(made.body)
    assert [each["target"] for each in upstream.score().last] == [
        "/app/api/meters?livemode=true",
        "/app/api/meters/calls?livemode=true",
    ]
