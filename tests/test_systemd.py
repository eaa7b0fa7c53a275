"""What the service manager is told and what it hands over: real datagrams, and sockets passed to real processes."""

import contextlib
import fcntl
import os
import re
import socket
import subprocess
import sys
import threading
import time

import pytest

from per_agent import ConfigError
from per_agent.sidecar.systemd import Notifier, inherited, watchdog_interval


@pytest.fixture
def manager(tmp_path):
    """The socket that a service manager would read, and the environment that names it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(10)
        receiver.bind(str(tmp_path / "notify"))
        yield receiver, {"NOTIFY_SOCKET": str(tmp_path / "notify")}


# Telling


def test_without_a_manager_every_message_does_nothing():
    for environ in (
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "vsock:2:1234"},
        {"NOTIFY_SOCKET": "relative"},
    ):
        notifier = Notifier(environ)
        assert not notifier
        assert not notifier.ready("up")
        assert not notifier.reloading()
        assert not notifier.stopping()
        assert not notifier.status("well")
        assert not notifier.extend(5)
        assert not notifier.watchdog()


@pytest.mark.parametrize(
    ("tell", "heard"),
    [
        (lambda notifier: notifier.ready(), "READY=1"),
        (lambda notifier: notifier.ready("takes events"), "READY=1\nSTATUS=takes events"),
        (lambda notifier: notifier.stopping(), "STOPPING=1"),
        (lambda notifier: notifier.stopping("storing"), "STOPPING=1\nSTATUS=storing"),
        (lambda notifier: notifier.status("3 pending"), "STATUS=3 pending"),
        (lambda notifier: notifier.extend(2.5), "EXTEND_TIMEOUT_USEC=2500000"),
        (lambda notifier: notifier.extend(0), "EXTEND_TIMEOUT_USEC=1"),
        (lambda notifier: notifier.watchdog(), "WATCHDOG=1"),
    ],
)
def test_the_manager_hears_one_datagram_for_each_message(manager, tell, heard):
    receiver, environ = manager
    assert tell(Notifier(environ))
    assert receiver.recv(8192).decode() == heard


def test_a_reload_tells_when_it_began(manager):
    receiver, environ = manager
    before = time.monotonic_ns() // 1000
    Notifier(environ).reloading()
    found = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", receiver.recv(8192).decode())
    assert found
    assert before <= int(found[1]) <= time.monotonic_ns() // 1000


def test_an_abstract_socket_is_reached_by_its_at_sign():
    name = f"per-agent-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(10)
        receiver.bind(f"\0{name}")
        assert Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert receiver.recv(8192) == b"READY=1"


def test_a_status_is_one_short_line_so_that_it_forges_nothing_and_is_not_dropped(manager):
    receiver, environ = manager
    Notifier(environ).status("down:\nREADY=1\r\nMAINPID=1 \ud800")
    assert receiver.recv(8192) == b"STATUS=down: READY=1 MAINPID=1 ?"
    Notifier(environ).ready("ä" * 10_000)
    heard = receiver.recv(65536)
    assert len(heard) < 4096
    assert heard.decode().startswith("READY=1\nSTATUS=ää")


def test_a_manager_that_went_away_is_no_error(tmp_path):
    assert not Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready()
    assert not Notifier({"NOTIFY_SOCKET": "/" + "x" * 500}).ready()
    assert not Notifier({"NOTIFY_SOCKET": "/a\0b"}).ready()


def test_a_manager_that_reads_nothing_holds_nobody_up(manager):
    receiver, environ = manager
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
        filler.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                filler.sendto(b"x", environ["NOTIFY_SOCKET"])
    answers: list[bool] = []
    sender = threading.Thread(target=lambda: answers.append(Notifier(environ).watchdog()))
    sender.start()
    sender.join(30)
    assert answers == [False]
    assert receiver.recv(16) == b"x"


# The watchdog


def test_the_watchdog_interval_is_in_seconds():
    assert watchdog_interval({"WATCHDOG_USEC": "30000000"}) == 30.0
    assert watchdog_interval({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}) == 1.5


def test_there_is_no_watchdog_where_none_is_asked_for_or_another_process_is_meant():
    assert watchdog_interval({}) is None
    assert watchdog_interval({"WATCHDOG_USEC": ""}) is None
    assert watchdog_interval({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getppid())}) is None


@pytest.mark.parametrize("value", ["soon", "-1", "0", "1.5", "²", "9" * 30])
def test_a_watchdog_interval_that_is_no_number_is_said(value):
    with pytest.raises(ConfigError, match=r"^WATCHDOG_USEC: expected a number from 1"):
        watchdog_interval({"WATCHDOG_USEC": value})


# Sockets that are handed over

TAKE = """
import os, socket, subprocess, sys
from per_agent import ConfigError
from per_agent.sidecar.systemd import inherited
try:
    found = inherited(os.environ)
except ConfigError as error:
    print(*error.problems, sep="\\n")
    try:
        os.fstat(3)
        print("and is open")
    except OSError:
        print("and is closed")
    sys.exit(2)
for each in found:
    print(each.family.name, os.get_inheritable(each.fileno()))
sys.stdout.flush()
child = "import os\\ntry:\\n os.fstat(3)\\n print('inherited')\\nexcept OSError: print('not inherited')"
subprocess.run([sys.executable, "-c", child], close_fds=False, check=True)
for each in found:
    connection, _ = each.accept()
    with connection:
        connection.sendall(connection.recv(100).upper())
    each.close()
"""


@contextlib.contextmanager
def handed_over(*descriptors, listen_pid="$$", names="", count=None):
    """A process that takes what is passed to it as a service manager passes it: from descriptor 3 upwards."""
    high = [fcntl.fcntl(each, fcntl.F_DUPFD, 50 + n) for n, each in enumerate(descriptors)]
    moves = " ".join(f"{3 + n}<&{each} {each}<&-" for n, each in enumerate(high))
    script = f'LISTEN_PID={listen_pid} exec "$0" -W error -c "$1" {moves}'
    number = str(len(descriptors)) if count is None else count
    process = subprocess.Popen(
        ["bash", "-c", script, sys.executable, TAKE],
        env=os.environ | {"LISTEN_FDS": number, "LISTEN_FDNAMES": names},
        pass_fds=high,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for each in high:
        os.close(each)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process, status):
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    return out.splitlines()


def asked(address, family):
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(30)
        client.connect(address)
        client.sendall(b"hello")
        return client.recv(100)


def test_both_listeners_arrive_serve_and_do_not_reach_children(tmp_path):
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as unix,
    ):
        unix.bind(str(tmp_path / "s"))
        unix.listen()
        with handed_over(unix, tcp, names="unix:tcp") as process:
            assert asked(str(tmp_path / "s"), socket.AF_UNIX) == b"HELLO"
            assert asked(tcp.getsockname(), socket.AF_INET) == b"HELLO"
            assert said(process, 0) == ["AF_UNIX False", "AF_INET False", "not inherited"]


def test_a_listener_of_the_newer_internet_serves_as_well():
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")
    with listener, handed_over(listener) as process:
        assert asked(listener.getsockname(), socket.AF_INET6) == b"HELLO"
        assert said(process, 0) == ["AF_INET6 False", "not inherited"]


def test_sockets_meant_for_another_process_are_left_alone():
    assert inherited({}) == []
    assert inherited({"LISTEN_FDS": "1"}) == []
    assert inherited({"LISTEN_FDS": "1", "LISTEN_PID": str(os.getppid())}) == []
    assert inherited({"LISTEN_FDS": "", "LISTEN_PID": str(os.getpid())}) == []
    with socket.create_server(("127.0.0.1", 0)) as tcp, handed_over(tcp, listen_pid="1") as process:
        # Nobody took it, so that it is as it was, for the child too.
        assert said(process, 0) == ["inherited"]


def test_each_descriptor_that_is_no_listener_is_named_with_what_is_wrong(tmp_path):
    with (
        socket.create_server(("127.0.0.1", 0)) as good,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as deaf,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram,
        (tmp_path / "file").open("wb") as file,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as netlink,
        handed_over(good, deaf, datagram, file, netlink, names="tcp:deaf::file", count="6") as process,
    ):
        assert said(process, 2) == [
            "LISTEN_FDS: descriptor 4 (deaf) does not listen: the unit must say Accept=no",
            "LISTEN_FDS: descriptor 5 is of the type SOCK_DGRAM, not a stream: the unit must say ListenStream=",
            "LISTEN_FDS: descriptor 6 (file) is not a socket: Socket operation on non-socket",
            "LISTEN_FDS: descriptor 7 is of the family AF_NETLINK, not a Unix or an internet socket",
            "LISTEN_FDS: descriptor 8 is not a socket: Bad file descriptor",
            "and is closed",
        ]


@pytest.mark.parametrize("count", ["two", "-1", "0", "1000000000"])
def test_a_count_of_sockets_that_is_none_is_said(count):
    with pytest.raises(ConfigError, match=r"^LISTEN_FDS: expected a number from 1 to 64, found"):
        inherited({"LISTEN_FDS": count, "LISTEN_PID": str(os.getpid())})
