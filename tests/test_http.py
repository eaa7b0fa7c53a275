"""Asking an upstream: bounded, in one process each, with nothing taken from the environment."""

import os
import random
import socket
import socketserver
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import received
from test_upstream_faults import OK, certificate, says
from unruly import UnrulyProxy
from waiting import until

from per_agent.destinations.http import Upstream, check_config, segment
from per_agent.errors import ConfigError, Refused, Unavailable

TOKEN = "s3cret-t0ken"
ADD = "/activities.add"
IDS = (("billingId", "b"), ("userId", "u"), ("activityTypeId", "t"))


@contextmanager
def client(upstream, **changes):
    settings = {"timeout": 5.0, "concurrency": 2, **changes}
    made = Upstream("up", upstream.url, TOKEN, **settings)
    try:
        yield made
    finally:
        made.close()


def words_of(asking):
    with pytest.raises(Unavailable) as caught:
        asking()
    return caught.value.words


# Time and memory


@pytest.mark.parametrize(
    "misbehaviour", [{"drip": 0.05}, {"drip_headers": 0.05}, {"delay": 30}, {"endless": True}]
)
def test_an_answer_that_never_ends_is_left_in_time(upstream, misbehaviour):
    upstream.rule(body="x" * 100_000, **misbehaviour)
    with client(upstream, timeout=0.4) as up:
        begun = time.monotonic()
        if "endless" in misbehaviour:
            assert up.ask("GET", ADD, IDS).overrun
        else:
            assert words_of(lambda: up.ask("GET", ADD, IDS)).startswith("sent, no answer: ")
        assert time.monotonic() - begun < 3


def test_a_longer_time_for_the_whole_does_not_lengthen_the_wait_for_a_first_byte(upstream):
    upstream.rule(delay=30)
    with client(upstream, timeout=0.3, total=60.0) as up:
        begun = time.monotonic()
        words_of(lambda: up.ask("GET", ADD, IDS))
        assert time.monotonic() - begun < 10


def test_a_long_answer_is_read_up_to_the_limit_and_is_then_no_json(upstream):
    upstream.rule(body='{"ok":true,"pad":"' + "x" * 200_000 + '"}')
    with client(upstream) as up:
        answer = up.ask("GET", ADD, IDS)
        assert len(answer.body) == 64 * 1024
        assert answer.overrun
        assert answer.object() is None
        assert up.ask("GET", ADD, IDS, limit=1_000_000).object()["ok"] is True


def test_json_that_is_followed_by_more_than_the_limit_is_no_json_either(upstream):
    upstream.rule(body='{"ok":true}' + " " * 100_000)
    with client(upstream) as up:
        assert up.ask("GET", ADD, IDS).object() is None


def test_json_that_is_nested_beyond_reason_is_no_json(upstream):
    upstream.rule(body="[" * 60_000)
    with client(upstream) as up:
        answer = up.ask("GET", ADD, IDS)
    assert answer.object() is None
    with pytest.raises(ValueError):
        answer.json()


def test_headers_without_an_end_are_no_answer(upstream):
    upstream.rule(status=200, headers={"X-Pad": "x" * 500_000})
    with client(upstream) as up:
        assert words_of(lambda: up.ask("GET", ADD, IDS)).startswith("sent, no answer: ")


# What was received


def test_a_refused_connection_says_not_sent(upstream):
    upstream.stop()
    with client(upstream) as up:
        assert words_of(lambda: up.ask("GET", ADD, IDS)).startswith("not sent: ")


def test_an_upstream_that_cannot_prove_who_it_is_gets_nothing(upstream):
    up = Upstream("up", upstream.url.replace("http:", "https:"), TOKEN, timeout=5.0, concurrency=1)
    assert words_of(lambda: up.ask("GET", ADD, IDS)).startswith("not sent: ")
    up.close()
    assert upstream.score().requests == 0


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_connection_that_is_cut_says_that_it_may_have_been_received(upstream, cut):
    upstream.rule(cut=cut)
    with client(upstream) as up:
        assert words_of(lambda: up.ask("GET", ADD, IDS)).startswith("sent, no answer: ")
    assert len(upstream.score().activities) == (cut == "after")


def test_a_truncated_answer_is_no_answer(upstream):
    upstream.rule(truncate=True)
    with client(upstream) as up:
        assert words_of(lambda: up.ask("GET", ADD, IDS)).startswith("sent, no answer: ")


@pytest.mark.parametrize("more", [b"\r\n", OK, OK[:20]], ids=["empty line", "answer", "part of one"])
def test_what_comes_after_an_answer_is_not_taken_for_the_next_and_every_request_is_sent_once(upstream, more):
    """It came before its question, so it is no answer to it; and on that connection there is no telling any more."""

    def answered_and_more(exchange):
        return exchange.say(exchange.answer() + more)

    users = [f"user-{number}" for number in range(5)]
    with UnrulyProxy(upstream.port) as proxy, client(proxy) as up:
        proxy.fault = answered_and_more
        said = [up.ask("GET", ADD, (IDS[0], ("userId", user), IDS[2])) for user in users]
    assert [answer.status for answer in said] == [200] * 5
    assert all(answer.object()["result"] for answer in said), "its own, and not what came before it"
    assert upstream.score().users == users
    assert proxy.met == 5


@contextmanager
def heard_in_part(listener, *pieces):
    """Whoever connects to *listener*, once: reads the head of a request, says *pieces* and leaves."""

    def serve() -> None:
        connection, _ = listener.accept()
        if connection.family == socket.AF_INET:
            # A piece that waits for the one before it would be lost when the connection is closed.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            received(connection, b"\r\n\r\n")
            for piece in pieces:
                connection.sendall(piece)

    server = threading.Thread(target=serve)
    server.start()
    try:
        yield
    finally:
        server.join(30)
        assert not server.is_alive()


def ask_at_length(up):
    """With a body that is longer than what sockets hold: who does not read it holds up who writes it."""
    return up.ask("POST", "/", (), b"x" * (64 * 2**20))


@pytest.fixture(params=["tcp", "unix"])
def deaf(request, tmp_path):
    """A listener, and an `Upstream` to it."""
    if request.param == "unix":
        listener, path = socket.socket(socket.AF_UNIX), str(tmp_path / "s")
        listener.bind(path)
        listener.listen()
        url = "http://localhost"
    else:
        listener, path = socket.create_server(("127.0.0.1", 0)), None
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    up = Upstream("up", url, TOKEN, timeout=10.0, concurrency=1, socket_path=path)
    with listener:
        yield listener, up
    up.close()


def early(status, body=b"", *, length=None):
    return (
        f"HTTP/1.1 {status} X\r\nRetry-After: 7\r\nConnection: close\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    ).encode() + body


@pytest.mark.parametrize("status", [401, 403, 404, 413, 429, 503])
def test_a_refusal_that_comes_before_the_body_was_read_is_the_answer(deaf, status):
    listener, up = deaf
    with heard_in_part(listener, early(status, b'{"error":"no"}')):
        answer = ask_at_length(up)
    assert (answer.status, answer.retry_after, answer.object()) == (status, 7.0, {"error": "no"})


def test_a_refusal_may_come_in_pieces_and_as_chunks(deaf):
    listener, up = deaf
    said = early(413).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    with heard_in_part(
        listener, b"HTTP/1.1 100 Continue\r\n\r\n", said[:30], said[30:], b"2\r\nno\r\n0\r\n\r\n"
    ):
        answer = ask_at_length(up)
    assert (answer.status, answer.body) == (413, b"no")


@pytest.mark.parametrize(
    "said",
    [
        early(200, b'{"ok":true}'),
        early(202),
        early(204),
        early(302),
        early(400, b'{"error":"the identifier already exists"}'),
        early(409),
        early(422),
        early(413, b"cut", length=5),
        early(413)[:-2],
        early(413, b"x" * 100_000),
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"no answer at all\r\n\r\n",
        b"",
    ],
    ids=lambda said: said[9:13].decode() + str(len(said)),
)
def test_nothing_but_a_whole_refusal_is_believed_before_the_body_was_read(deaf, said):
    """Who did not read an event cannot have taken it, nor found something in it."""
    listener, up = deaf
    with heard_in_part(listener, said):
        assert words_of(lambda: ask_at_length(up)).startswith("sent, no answer: WriteError: ")


def test_after_a_refusal_of_what_was_not_read_the_next_request_has_a_connection_of_its_own(deaf):
    listener, up = deaf
    keeping = early(413).replace(b"Connection: close\r\n", b"")
    with heard_in_part(listener, keeping):
        assert ask_at_length(up).status == 413
    with heard_in_part(listener, OK):
        assert up.ask("POST", "/", (), b"{}").status == 200


def test_an_upstream_that_reads_slowly_is_left_in_time():
    taken = 0

    def read() -> None:
        nonlocal taken
        connection, _ = listener.accept()
        with connection:
            while piece := connection.recv(65536):
                taken += len(piece)
                time.sleep(0.01)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        reader = threading.Thread(target=read)
        reader.start()
        up = Upstream("up", f"http://127.0.0.1:{listener.getsockname()[1]}", None, timeout=1.0, concurrency=1)
        whole = 64 * 2**20  # at 6 MiB in a second, no single write waits for long
        words = words_of(lambda: up.ask("POST", "/", (), b"x" * whole))
        reader.join(60)
        up.close()
    assert words.startswith("sent, no answer: WriteTimeout: ")
    assert taken < whole


@pytest.mark.parametrize(
    "location",
    [
        "http://[",
        "http://h:99999999/",
        "//",
        "javascript:x",
        "http://xn--/",
        "/" * 70_000,
        "\xff",
        "http://a b/",
    ],
    ids=lambda location: location[:20],
)
def test_a_redirect_that_leads_nowhere_is_an_answer_like_any_other(upstream, location):
    """httpx works out where it leads, though nobody goes there, and would raise all kinds of things."""
    upstream.rule(redirect=location)
    with client(upstream) as up:
        assert up.ask("GET", ADD, IDS).status == 302


def test_who_finds_no_free_connection_has_not_sent(upstream):
    upstream.rule(drip=0.1)  # holds its connection, and is never silent for long
    words = []
    with client(upstream, timeout=0.5, total=2.0, concurrency=1) as up:
        asking = [
            threading.Thread(target=lambda: words.append(words_of(lambda: up.ask("GET", ADD, IDS))))
            for _ in range(6)
        ]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join(30)
    sent = upstream.score().requests
    assert 0 < sent < 6
    assert sum(each.startswith("sent, no answer: ReadTimeout: ") for each in words) == sent
    assert sum(each.startswith("not sent: PoolTimeout: ") for each in words) == 6 - sent


def test_who_gets_no_connection_in_time_has_not_sent():
    with socket.socket() as listener, ExitStack() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(8):  # who comes after the first is not let in: nobody accepts
            caller = waiting.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(address)
        up = Upstream("up", f"http://127.0.0.1:{address[1]}", TOKEN, timeout=0.3, concurrency=1)
        assert words_of(lambda: up.ask("GET", ADD, IDS)).startswith("not sent: ConnectTimeout: ")
        up.close()


def test_whatever_bytes_come_back_there_is_an_answer_or_words(upstream):
    seed = int(os.environ.get("PER_AGENT_TEST_SEED", random.randrange(2**32)))
    print(f"PER_AGENT_TEST_SEED={seed}")
    chance = random.Random(seed)
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nSet-Cookie: a=b; Max-Age=x\r\n"
        b"Retry-After: 1\r\nLocation: http://a/\r\nContent-Length: 11\r\n\r\n"
    )
    spice = [
        b"\r\n",
        b"\x00",
        b"\xff",
        b":",
        b" ",
        b"HTTP/1.1 ",
        b"100",
        b"302",
        b"Transfer-Encoding: chunked\r\n",
    ]

    def garbled() -> bytes:
        said = bytearray(head + b'{"ok":true}')
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(said))
            said[at : at + chance.choice((0, 0, 1, 10))] = chance.choice(spice)
        return bytes(said)

    statuses = Counter()
    with UnrulyProxy(upstream.port) as proxy, client(proxy, timeout=5.0) as up:
        for _ in range(300):
            proxy.fault = says(garbled())
            try:
                statuses[up.ask("GET", ADD, IDS).status] += 1
            except Unavailable as error:
                statuses[error.words[:17]] += 1
    print(statuses)
    assert statuses.pop("sent, no answer: ") > 0
    assert statuses.pop(200) > 0
    assert all(isinstance(each, int) for each in statuses), statuses


def test_an_address_beyond_all_length_is_refused_without_being_asked(upstream):
    with client(upstream) as up, pytest.raises(Refused, match="not sent"):
        up.ask("GET", ADD, (("userId", "é" * 40_000),))
    assert upstream.score().requests == 0


# What is sent


def test_headers_are_explicit_and_the_credential_stands_in_one_of_them(upstream):
    with client(upstream) as up:
        up.ask("GET", ADD, IDS)
    (request,) = upstream.score().last
    assert request["headers"]["accept"] == "application/json"
    assert request["headers"]["accept-encoding"] == "identity"
    assert request["headers"]["user-agent"].startswith("per-agent/")
    assert request["headers"]["authorization"] == f"Bearer {TOKEN}"
    assert str(request).count(TOKEN) == 1


@pytest.mark.parametrize(
    ("method", "body", "length"), [("POST", None, "0"), ("PUT", b"{}", "2"), ("GET", None, None)]
)
def test_the_length_of_a_body_is_said_also_where_there_is_none(upstream, method, body, length):
    with client(upstream) as up:
        up.ask(method, ADD, IDS, body)
    (request,) = upstream.score().last
    assert request["headers"].get("content-length") == length


def test_a_cookie_that_a_gateway_sets_is_not_sent_back(upstream):
    upstream.rule(status=200, body={"ok": True}, headers={"Set-Cookie": "login_token=abc; Path=/"})
    with client(upstream) as up:
        up.ask("GET", ADD, IDS)
        up.ask("GET", ADD, IDS)
    assert "cookie" not in upstream.score().last[-1]["headers"]


def test_a_redirect_is_an_answer_and_not_a_way(upstream):
    upstream.rule(redirect=f"{upstream.url}/elsewhere")
    with client(upstream) as up:
        assert up.ask("POST", "/api/meter-events", (), b"{}").status == 302
    assert upstream.score().requests == 1


def test_proxies_and_certificates_of_the_environment_are_not_used(upstream, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    with client(upstream) as up:
        assert up.ask("GET", ADD, IDS).status == 200


@given(st.text(min_size=1))
def test_any_id_is_one_segment_of_a_path(text):
    raw = httpx.URL(f"http://a/api/meters/{segment(text)}/activate?x=1").raw_path.decode()
    path = raw.removesuffix("?x=1")
    *front, middle, last = path.split("/")
    assert (front, last) == (["", "api", "meters"], "activate")
    assert httpx.QueryParams(f"id={middle.replace('+', '%2B')}")["id"] == text


@pytest.mark.parametrize("text", [".", "..", "..."])
def test_dots_are_no_steps(upstream, text):
    with client(upstream) as up:
        up.ask("GET", f"/api/meters/{segment(text)}", (("livemode", "true"),))
    assert upstream.score().last[0]["path"] == "/api/meters/" + "%2E" * len(text)


def test_an_empty_id_is_refused_because_it_would_name_the_list():
    with pytest.raises(ValueError, match="must not be empty"):
        segment("")


# Words


def test_words_are_short_in_one_line_and_without_the_credential(upstream):
    upstream.rule(status=500, body={"error": f"no\n\x1b[31m {TOKEN} " + "x" * 1000})
    with client(upstream) as up:
        reason = up.reason(up.ask("GET", ADD, IDS))
    assert reason.startswith("HTTP 500: no ")
    assert TOKEN not in reason
    assert reason.isprintable()
    assert len(reason) < 250


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"body": {"error": "a", "message": "b"}}, "a: b"),
        ({"body": {"message": "b"}}, "b"),
        ({"body": {"error": {"message": "deep"}}}, "deep"),
        ({"body": {"error": ["x", 1]}}, '["x",1]'),
        ({"html": True}, "a page titled 'Welcome'"),
        ({"body": "<p>x"}, "a page without a title"),
        ({"body": "plain\ntext"}, "plain text"),
        ({"body": ""}, "an empty answer"),
        ({"body": [1]}, "[1]"),
    ],
)
def test_words_are_looked_for_where_services_put_them(upstream, rule, words):
    upstream.rule(status=400, **rule)
    with client(upstream) as up:
        assert up.words(up.ask("GET", ADD, IDS)) == words


def test_a_wait_is_read_from_the_answer(upstream):
    upstream.rule(status=503, headers={"Retry-After": "7"})
    with client(upstream) as up:
        assert up.ask("GET", ADD, IDS).retry_after == 7.0


# Processes and threads


def test_a_connection_is_used_again(upstream):
    with client(upstream) as up:
        for _ in range(5):
            up.ask("GET", ADD, IDS)
    assert upstream.score().connections == 1


@pytest.mark.slow
def test_of_many_connections_the_one_that_was_used_last_is_used_again(upstream):
    """So that those which are not needed grow old, and are closed."""
    upstream.rule(delay=0.2, count=3)
    others = sockets()
    with client(upstream, concurrency=3) as up:
        asking = [threading.Thread(target=lambda: up.ask("GET", ADD, IDS)) for _ in range(3)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join(30)
        before = sockets() - others
        for _ in range(3):
            up.ask("GET", ADD, IDS)
        assert sockets() >= before
        until(lambda: len(sockets() & before) == len(before) - 2 or not up.ask("GET", ADD, IDS), every=0.1)
    assert upstream.score().connections == 3


@pytest.mark.parametrize("surplus", [b"", b"HTTP/1.1 408 Request Timeout\r\n\r\n"])
def test_a_connection_that_ended_or_spoke_while_nobody_asked_is_not_used_again(upstream, surplus):
    """As of a server whose idle timeout is short: a request on it would be one of which nobody knows what became."""

    def answered_and_left(exchange):
        exchange.say(exchange.answer())
        left.wait(30)
        exchange.say(surplus)
        return bool(surplus)

    left = threading.Event()
    with UnrulyProxy(upstream.port) as proxy, client(proxy) as up:
        proxy.fault = answered_and_left
        assert up.ask("GET", ADD, IDS).status == 200
        with up._lease() as pool:
            (idle,) = pool.client._transport._idle
        left.set()
        until(lambda: idle.spoken)
        assert up.ask("GET", ADD, IDS).status == 200
    assert upstream.score().requests == 2


def sockets() -> set[str]:
    """The sockets that this process has open."""
    links = (os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir())
    return {Path(link).name for link in links if "socket:" in link}


def test_over_tls_a_connection_is_kept_and_bounded_as_any_other(tmp_path):
    context = certificate(tmp_path)
    body = b"x" * 300_000  # longer than a TLS record, and than what is written at once
    taken = []

    def serve() -> None:
        connection, _ = listener.accept()
        with context.wrap_socket(connection, server_side=True) as tls:
            for _ in range(2):
                taken.append(received(tls, body))
                tls.sendall(OK)
            while tls.recv(65536):  # says nothing, until the client leaves
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve)
        server.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        up = Upstream("up", url, TOKEN, timeout=1.0, concurrency=1)
        with up._lease() as pool:
            pool.client._transport._context.load_verify_locations(tmp_path / "cert.pem")
        assert [up.ask("POST", "/", (), body).status for _ in range(2)] == [200, 200]
        assert words_of(lambda: up.ask("GET", "/")).startswith("sent, no answer: ReadTimeout: ")
        server.join(30)
        up.close()
    assert all(said.endswith(body) for said in taken)


def test_a_forked_child_has_connections_of_its_own_and_leaves_its_parents_alone(upstream):
    with client(upstream) as up:
        up.ask("GET", ADD, IDS)
        inherited = sockets()
        child = os.fork()
        if child == 0:
            try:
                for _ in range(20):
                    assert up.ask("GET", ADD, (*IDS[:1], ("userId", "child"), *IDS[2:])).status == 200
                assert inherited < sockets()
                up.close()
                assert inherited == sockets()
                os._exit(0)
            except BaseException:
                os._exit(1)
        for _ in range(20):
            assert up.ask("GET", ADD, IDS).status == 200
        assert os.waitpid(child, 0)[1] == 0
        assert up.ask("GET", ADD, IDS).status == 200
    score = upstream.score()
    assert score.connections == 2
    assert score.users.count("child") == 20
    assert score.users.count("u") == 22


def test_close_lets_an_exchange_under_way_end(upstream):
    upstream.rule(delay=0.5, count=1)
    with client(upstream) as up:
        answers = []
        asking = threading.Thread(target=lambda: answers.append(up.ask("GET", ADD, IDS).status))
        asking.start()
        while upstream.score().requests == 0:
            pass
        up.close()
        asking.join(10)
        assert answers == [200]
        assert up._pools == {}


def test_threads_that_ask_while_others_close_all_get_their_answers(upstream):
    with client(upstream, concurrency=4) as up:
        statuses, problems = [], []

        def ask():
            try:
                statuses.extend(up.ask("GET", ADD, IDS).status for _ in range(30))
            except Exception as error:
                problems.append(error)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            up.close()
        assert problems == []
        assert statuses == [200] * 120


def test_an_upstream_may_listen_on_a_unix_socket(tmp_path):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"path": "%s"}' % self.path.encode())

        def log_message(self, *_):
            pass

    with socketserver.UnixStreamServer(str(tmp_path / "s"), Handler) as server:
        threading.Thread(target=server.handle_request).start()
        up = Upstream(
            "up", "http://sidecar", None, timeout=5.0, concurrency=1, socket_path=str(tmp_path / "s")
        )
        assert up.ask("GET", "/v1/status").object() == {"path": "/v1/status"}
        up.close()


# Configuration


def test_what_cannot_be_an_upstream_is_named_all_at_once_and_no_secret_is_quoted():
    with pytest.raises(ConfigError) as caught:
        check_config("per", "ftp://u:hunter2@host/?a=b", {"activity_token": "hunter3 x", "other": ""}, 0, 0)
    text = str(caught.value)
    assert len(caught.value.problems) == 6
    assert "hunter" not in text
    for part in ("https://", "password", "activity_token", "other is missing", "timeout", "concurrency"):
        assert part in text


@pytest.mark.parametrize("token", ["a b", "a\n", "\ttab", "ключ", "a\x00", "a\x7f", None, 5])
def test_a_token_that_no_header_takes_is_refused(token):
    with pytest.raises(ConfigError):
        check_config("per", "https://a", {"activity_token": token}, 1.0, 1)


@pytest.mark.parametrize(
    "url", ["", "host", "http://", "https:///x", "http://a b", f"http://{'a' * 70}.x", None, "http://h:x"]
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ConfigError):
        check_config("per", url, {}, 1.0, 1)


@pytest.mark.parametrize("timeout", [float("inf"), float("nan"), -1, "5", None])
def test_a_timeout_is_finite(timeout):
    with pytest.raises(ConfigError):
        check_config("per", "https://a", {}, timeout, 1)
