"""A sidecar in trouble, real processes: stops, a full disk, a deaf manager, an unread log, hostile requests."""

import contextlib
import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from recorder_socket import RecorderSocket
from sidecar_process import SidecarProcess, answer_of
from waiting import until

from per_agent.sidecar.systemd import Notifier

ACTIVITY = {"billing_id": "acme", "user_id": "u-17", "activity_type_id": "active-users"}
NOBODY = "http://127.0.0.1:1"


def post(name, sidecar, path="/v1/events"):
    body = json.dumps({**ACTIVITY, "id": name}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {sidecar.token}\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def stopping(sidecar):
    return any(line["event"] == "stopping" for line in sidecar.lines())


class Inheriting(SidecarProcess):
    """A sidecar whose listeners are this process's, as a service manager keeps them over a restart."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.listeners = [socket.socket(socket.AF_UNIX), socket.socket()]
        self.listeners[0].bind(str(self.socket))
        self.listeners[1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listeners[1].bind(("127.0.0.1", self.port))
        for each in self.listeners:
            each.listen(128)

    def start(self, *, wait=True):
        unix, tcp = (each.fileno() for each in self.listeners)
        run = f'exec 3<&{unix} 4<&{tcp}; LISTEN_PID=$$ LISTEN_FDS=2 exec "$@"'
        command = [sys.executable, "-m", "per_agent.cli", "run", "--config", str(self.config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["/bin/bash", "-c", run, "bash", *command],
                env=self.environ,
                pass_fds=(unix, tcp),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if wait:
            until(self._is_ready, 30)
        return self

    def __exit__(self, *error):
        super().__exit__(*error)
        for each in self.listeners:
            each.close()


# Stopping


@pytest.mark.parametrize("early", [True, False], ids=["asked before", "asks afterwards"])
def test_who_connects_in_the_very_moment_of_a_stop_is_answered_by_one_of_the_two(tmp_path, early):
    with Inheriting(tmp_path) as sidecar:
        sidecar.signal(signal.SIGSTOP)
        clients = [sidecar.raw(unix=unix) for unix in (True, False)]
        for number, client in enumerate(clients):
            if early:
                client.sendall(post(f"moment-{number}", sidecar))
        sidecar.signal(signal.SIGTERM)
        sidecar.signal(signal.SIGCONT)
        if not early:
            until(lambda: stopping(sidecar))
            for number, client in enumerate(clients):
                client.sendall(post(f"moment-{number}", sidecar))
        assert sidecar.wait() == 0
        sidecar.start()
        for client in clients:
            assert client.recv(4096).startswith(b"HTTP/1.1 202 ")
            client.close()
        assert sidecar.drained()["delivered"] == 2


def test_who_was_let_in_is_answered_however_little_time_there_is_for_delivering(tmp_path):
    with SidecarProcess(tmp_path, sidecar={"shutdown_timeout": "0"}) as sidecar, sidecar.raw() as client:
        client.sendall(post("first", sidecar))
        assert client.recv(4096).startswith(b"HTTP/1.1 202 ")
        sidecar.signal()
        until(lambda: stopping(sidecar), every=0.005)
        client.sendall(post("last", sidecar, "/v1/events?wait=stored"))
        said = answer_of(client)
        assert said.startswith(b"HTTP/1.1 202 ")
        assert b"connection: close" in said
        assert sidecar.wait() == 0


def test_who_comes_while_a_sidecar_stops_that_has_no_successor_is_refused_and_does_not_wait(tmp_path):
    with SidecarProcess(tmp_path) as sidecar, sidecar.raw(unix=True) as slow:
        slow.sendall(post("slow", sidecar)[:-5])  # holds the stop up
        until(lambda: sidecar.get("/healthz"))
        sidecar.signal()

        def refused(*, unix):
            with contextlib.suppress(TimeoutError):
                try:
                    sidecar.raw(unix=unix).close()
                except OSError:
                    return True
            return False

        until(lambda: refused(unix=True) and refused(unix=False))
        assert sidecar.process.poll() is None
        slow.sendall(post("slow", sidecar)[-5:])
        assert answer_of(slow).startswith(b"HTTP/1.1 202 ")
        assert sidecar.wait() == 0


def test_signals_until_the_very_end_do_not_spoil_the_exit_code(tmp_path):
    with SidecarProcess(tmp_path) as sidecar:
        while sidecar.process.poll() is None:
            sidecar.signal(signal.SIGTERM)
            sidecar.signal(signal.SIGHUP)
            with contextlib.suppress(subprocess.TimeoutExpired):
                sidecar.wait(0.005)
        assert sidecar.wait() == 0


@pytest.mark.parametrize("journal", ["true", "false"])
def test_what_a_full_disk_did_not_take_is_in_the_journal_or_the_exit_code_says_that_it_is_lost(
    tmp_path, journal
):
    config = (
        f"[intake]\njournal = {journal}\n"
        f'[destinations.per]\ntype = "per"\nurl = "{NOBODY}"\nactivity_token = "per-token"\n'
    )
    # Not forked, and so not counted: its limit would hold for the counts, too.
    with SidecarProcess(tmp_path, config, forked=False) as sidecar:
        resource.prlimit(sidecar.process.pid, resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        with sidecar.client() as client:
            # What lies on the disk is compressed, where that can be done.
            events = [{**ACTIVITY, "user_id": os.urandom(10_000).hex()} for _ in range(100)]
            accepted = sum(client.post("/v1/events", json=each).json()["accepted"] for each in events)
            until(lambda: client.get("/readyz").status_code == 503)
        code = sidecar.stop(60)
        (stopped,) = (line for line in sidecar.lines() if line["event"] == "stopped")
        unstored = stopped["in_the_journal" if journal == "true" else "lost"]
        assert unstored > 0
        assert stopped["kept_on_the_disk"] + unstored == accepted
        assert (code, stopped["level"]) == ((0, "warning") if journal == "true" else (1, "error"))
        sidecar.start()
        kept = accepted if journal == "true" else stopped["kept_on_the_disk"]
        until(lambda: sidecar.books("per")["pending"] == kept)


# Nobody holds the callers up


def test_a_service_manager_that_reads_nothing_is_not_waited_for_every_second(tmp_path):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(path)
        notifier = Notifier({"NOTIFY_SOCKET": path})
        while notifier.status("well"):
            pass
        began = time.monotonic()
        assert not any(notifier.status("well") or notifier.watchdog() for _ in range(20))
        assert time.monotonic() - began < 20  # it was a second for each


def test_a_log_that_nobody_reads_holds_no_caller_up_and_says_later_how_much_was_lost(tmp_path):
    sidecar = SidecarProcess(tmp_path)
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"x" * 4095 + b"\n")
    command = [sys.executable, "-m", "per_agent.cli", "run", "--config", str(sidecar.config)]
    sidecar.process = subprocess.Popen(command, env=sidecar.environ, stdout=subprocess.DEVNULL, stderr=writer)
    os.close(writer)
    try:
        until(sidecar._is_ready, 30)
        with sidecar.client() as client:
            assert client.post("/v1/events?wait=stored", json=ACTIVITY).status_code == 202
        assert os.read(reader, 8192) == b"x" * 4095 + b"\n"
        sidecar.signal()
        with os.fdopen(reader) as log:
            lines = [json.loads(line) for line in log]
        assert sidecar.wait() == 0
        lost = next(line for line in lines if "lost" in line["event"])
        assert lost["lines"] >= 1
        assert lines[-1]["event"] == "stopped"
    finally:
        sidecar.process.kill()
        sidecar.process.wait(10)


def test_a_batch_of_long_events_lets_others_through(tmp_path):
    event = {"event_name": "m", "customer_id": "c", "value": 1, "metadata": {"n": list(range(8000))}}
    batch = b"\n".join([json.dumps(event).encode()] * 150)
    with SidecarProcess(tmp_path) as sidecar:
        took, longest, answer = with_others(sidecar, batch)
        assert answer.json()["accepted"] == 150
        assert longest < took / 2  # it was all of it


FRACTIONS = b"[" + b",".join([b"1.5"] * 100_000) + b"]"
LONG = {
    "an event": b'{"a":' + b"[" + b",".join([FRACTIONS] * 20) + b"]}",
    "a list": b"[" + b",".join([b'{"a":' + FRACTIONS + b"}"] * 20) + b"]",
    "a line": b'{}\n{"a":' + b"[" + b",".join([FRACTIONS] * 20) + b"]}\n",
    "labels": b'{"event_name":"m","customer_id":"c","value":1,"metadata":{"n":[' + b",".join([b"1"] * 3_000_000) + b"]}}",
}  # fmt: skip


@pytest.mark.parametrize("body", LONG.values(), ids=LONG)
def test_what_takes_long_to_read_lets_others_through(tmp_path, body):
    with SidecarProcess(tmp_path) as sidecar:
        took, longest, answer = with_others(sidecar, body)
        assert answer.status_code == 400
        assert longest < took / 2


def with_others(sidecar, content):
    """Send *content*: the seconds that it took, those that somebody else waited at most meanwhile, and the answer."""
    done = threading.Event()

    def others():
        longest = 0.0
        with sidecar.client() as client:
            while not done.is_set():
                began = time.perf_counter()
                assert client.post("/v1/events", json=ACTIVITY).status_code == 202
                longest = max(longest, time.perf_counter() - began)
        return longest

    with ThreadPoolExecutor(1) as pool, sidecar.client() as client:
        waiting = pool.submit(others)
        began = time.perf_counter()
        answer = client.post("/v1/events", content=content)
        took = time.perf_counter() - began
        done.set()
        return took, waiting.result(), answer


def test_an_event_with_very_many_fields_is_told_so_in_few_words(tmp_path):
    with SidecarProcess(tmp_path) as sidecar, sidecar.client() as client:
        answer = client.post("/v1/events", json={f"f{n}": n for n in range(100_000)})
        assert answer.status_code == 400
        assert answer.json()["errors"] == {"event": "has 100000 fields, at most 64 are taken"}


def test_strangers_on_tcp_take_no_place_from_those_who_may_open_the_unix_socket(tmp_path):
    with SidecarProcess(tmp_path, sidecar={"max_connections": "20"}) as sidecar:
        strangers = [sidecar.raw() for _ in range(40)]
        assert answer_of(strangers[-1]).startswith(b"HTTP/1.1 503 ")
        with sidecar.client() as client:
            assert client.post("/v1/events", json=ACTIVITY).status_code == 202
        for each in strangers:
            each.close()


def test_a_process_that_may_open_few_files_keeps_those_that_its_spool_needs(tmp_path):
    sidecar = SidecarProcess(tmp_path)
    command = [sys.executable, "-m", "per_agent.cli", "run", "--config", str(sidecar.config)]
    with sidecar.log.open("ab") as log:
        run = ["/bin/sh", "-c", 'ulimit -n 160; exec "$@"', "sh", *command]
        sidecar.process = subprocess.Popen(run, env=sidecar.environ, stdout=log, stderr=log)
    try:
        until(sidecar._is_ready, 30)
        with sidecar.client() as client:
            assert client.get("/healthz").status_code == 200
            crowd = [sidecar.raw() for _ in range(60)]
            assert client.post("/v1/events?wait=stored", json=ACTIVITY).json()["stored"] is True
            assert answer_of(crowd[-1]).startswith(b"HTTP/1.1 503 ")
            for each in crowd:
                each.close()
        assert sidecar.stop() == 0
    finally:
        sidecar.process.kill()
        sidecar.process.wait(10)


# Where requests and events may go


def test_a_path_that_walks_up_is_not_passed_on_with_our_credential(tmp_path):
    paths = [f"/api/{up}" for up in ("../x", "a/..", "./x", "%2e%2e/x", "..;/x", "%2e%2e%5cx")]
    with RecorderSocket() as recorder:
        config = (
            f'[destinations.kit]\ntype = "payment_kit"\nurl = "{recorder.url}/app"\naccess_key = "our-key"\n'
        )
        with SidecarProcess(tmp_path, config) as sidecar:
            for path in [*paths, "/api%2f..%2fx"]:
                with sidecar.raw(unix=True) as client:
                    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                    client.sendall(head.encode())
                    assert answer_of(client).startswith(b"HTTP/1.1 400 ")
        assert not recorder.heads


@pytest.mark.parametrize(
    "url",
    ["unix:{folder}/link/s", "unix:{folder}/./s", "http://LOCALHOST:{port}/", "http://mine:{port}"],
)
def test_a_sidecar_does_not_deliver_to_itself_under_another_name(tmp_path, url):
    (tmp_path / "link").symlink_to(tmp_path)
    sidecar = SidecarProcess(tmp_path, sidecar={"hosts": '["mine"]'})
    address = url.format(folder=tmp_path, port=sidecar.port)
    sidecar.write(f'[destinations.up]\ntype = "sidecar"\nurl = "{address}"\ntoken = "{sidecar.token}"\n')
    sidecar.start(wait=False)
    assert sidecar.wait() == 2
    assert "is this sidecar itself" in sidecar.said()
    assert not sidecar.socket.exists()
