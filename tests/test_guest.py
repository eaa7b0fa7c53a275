"""A guest in its host's process: what importing, the first event, idling, forking and the end of the program cost."""

import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import run
from upstream import UpstreamServer

from per_agent import Agent
from per_agent.destinations.http import address

# What only delivery, a log line, a coroutine, a configuration file or the command line needs.
HEAVY = {
    "asyncio", "click", "email", "h11", "http", "httpcore", "httpx", "importlib.metadata", "importlib.resources",
    "multiprocessing", "pygments", "rich", "ssl", "structlog", "subprocess", "tenacity", "tomllib", "typer",
}  # fmt: skip


def test_importing_loads_nothing_that_taking_events_in_does_not_need(tmp_path):
    out = run("print(*sys.modules)", tmp_path)
    assert HEAVY & set(out.split()) == set()


def test_a_ledger_that_works_loads_no_http_client_and_no_renderer_of_log_lines(tmp_path):
    out = run(
        """
        agent = Agent(data_dir)
        assert agent.add_activity("acme", "u-1", "active").delivered(30)
        assert agent.get_report("2020-01-01T00:00:00Z")["ok"]
        print(*sys.modules)
        agent.close()
        """,
        tmp_path,
    )
    assert HEAVY & set(out.split()) == set()


def test_the_first_event_loads_nothing_in_the_callers_thread(tmp_path, upstream: UpstreamServer):
    out = run(
        """
        caller, loaded, elsewhere = threading.get_ident(), [], []
        def look(event, arguments):
            if event == "import":
                (loaded if threading.get_ident() == caller else elsewhere).append(arguments[0])
        agent = Agent(data_dir, [Per("secret", url=sys.argv[2]), PaymentKit(sys.argv[2], "key"), Ledger()])
        sys.addaudithook(look)
        receipt = agent.add_activity("acme", "u-1", "active")
        agent.add_meter_event("calls", customer_id="c", value=1)
        print(*loaded, sep=",")
        assert receipt.delivered(30)
        assert "httpx" in elsewhere, "the hook sees imports, and a sender has loaded it meanwhile"
        agent.close(0)
        """,
        tmp_path,
        upstream.url,
    )
    assert out.strip() == ""


def test_a_buffer_that_overflows_is_told_without_making_the_caller_load_what_writes_it(tmp_path):
    out = run(
        """
        import logging
        told, caller, loaded = threading.Event(), threading.get_ident(), []
        class Handler(logging.Handler):
            def emit(self, record):
                if "events do not fit" in record.getMessage():
                    told.set()
        logging.getLogger("per_agent").addHandler(Handler())
        def look(event, arguments):
            if event == "import" and threading.get_ident() == caller:
                loaded.append(arguments[0])
        agent = Agent(data_dir, intake=IntakeSettings(buffer_events=1, overflow="drop_newest"))
        sys.addaudithook(look)
        while not agent.add_activity("acme", "u", "active").dropped:
            pass
        print(*loaded, sep=",")
        assert told.wait(30)
        assert "structlog" in sys.modules
        """,
        tmp_path,
    )
    assert out.strip() == ""


def test_importing_takes_less_work_than_importing_an_http_client(tmp_path, monkeypatch):
    """A ratio, so that it holds on any machine: 0.8 when written, 2 before what is heavy was loaded late."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path / "bytecode"))  # as an installation has it

    def work(module: str) -> float:
        program = f"began = time.process_time(); import {module}; print(time.process_time() - began)"
        command = [sys.executable, "-c", f"import sys, os, time; {program}"]
        return min(float(subprocess.check_output(command, text=True, timeout=60)) for _ in range(5))

    assert work("per_agent") < 1.2 * work("httpx")


@given(st.from_regex(address._PLAIN, fullmatch=True, alphabet=st.characters(codec="ascii")))
def test_an_address_that_is_taken_without_asking_httpx_is_one_that_it_takes(url):
    parsed = httpx.URL(url)
    assert parsed.scheme in ("http", "https")
    assert parsed.host
    assert parsed.host.encode("idna")
    assert (parsed.userinfo, parsed.query, parsed.fragment) == (b"", b"", "")
    assert str(httpx.URL(url + "/activities.add?a=b")).lower().startswith(parsed.scheme)


@pytest.mark.parametrize(
    ("url", "loads"),
    [
        ("https://api.useper.com", False),
        ("http://127.0.0.1:4737/app", False),
        ("https://pay.example/app/payment-kit/", False),
        ("http://[::1]:4737", True),
        ("https://bücher.example", True),
        ("https://xn--bcher-kva.example", True),
    ],
)
def test_a_destination_is_made_without_loading_the_http_client_where_its_address_is_plain(
    tmp_path, url, loads
):
    out = run("Per('secret', url=sys.argv[2]); print('httpx' in sys.modules)", tmp_path, url)
    assert out.strip() == str(loads)


# Forks


# Somebody who imports "httpx" in another thread than the main one stays there for a while.
SLOW_IMPORT = """
import sys, threading, time
importing = threading.Event()
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "httpx" and threading.current_thread() is not threading.main_thread():
            importing.set()
            time.sleep(0.3)
sys.meta_path.insert(0, Slow())
"""


def test_a_fork_while_the_http_client_is_being_loaded_leaves_a_child_that_can_load_it(
    tmp_path, upstream: UpstreamServer
):
    run(
        """
        agent = Agent(data_dir, [Per("secret", url=sys.argv[2])])
        agent.add_activity("acme", "parent", "active")
        assert importing.wait(30)
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)  # who waits for ever ends here
            import httpx  # as the host may
            delivered = agent.add_activity("acme", "child", "active").delivered(15)
            os._exit(0 if delivered else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert agent.flush(15)
        """,
        tmp_path,
        upstream.url,
        world=SLOW_IMPORT,
    )
    assert sorted(upstream.score().users) == ["child", "parent"]


@pytest.mark.slow
def test_forty_forks_at_any_moment_of_a_first_delivery_hang_nobody(tmp_path, upstream: UpstreamServer):
    """Each in a process that has just been forked itself, so that nothing is loaded there yet."""
    seed = os.environ.get("PER_AGENT_TEST_SEED", str(time.time_ns()))
    print("PER_AGENT_TEST_SEED =", seed)
    run(
        """
        import random
        at = random.Random(sys.argv[3])
        for n in range(40):
            pause = at.uniform(0, 0.25)
            pid = os.fork()
            if pid == 0:
                signal.alarm(60)
                agent = Agent(data_dir, [Per("secret", url=sys.argv[2])])
                agent.add_activity("acme", f"parent-{n}", "active")
                time.sleep(pause)
                pid = os.fork()
                if pid == 0:
                    signal.alarm(30)
                    import asyncio, httpx, structlog
                    assert agent.add_activity("acme", f"child-{n}", "active").delivered(20)
                    agent.close()
                    os._exit(0)
                well = os.waitpid(pid, 0)[1] == 0 and agent.close(20)
                os._exit(0 if well else 1)
            assert os.waitpid(pid, 0)[1] == 0, (n, pause)
        """,
        tmp_path,
        upstream.url,
        seed,
        timeout=150,
    )
    expected = {f"{who}-{n}" for who in ("parent", "child") for n in range(40)}
    assert set(upstream.score().users) == expected


# The end


def _leaving(program: str, data_dir: Path, *arguments: str) -> float:
    """The fewest seconds that it took from the end of *program* to the end of its process."""

    def once() -> float:
        last = run(textwrap.dedent(program) + "\nprint(time.monotonic(), flush=True)", data_dir, *arguments)
        return time.monotonic() - float(last)

    return min(once() for _ in range(3))


def test_a_program_with_nothing_pending_ends_as_if_there_were_no_upstream(tmp_path):
    """However long it may spend delivering: to wait for anything of an upstream would take a thousand times as long."""
    with socket.socket() as refuses, socket.socket() as silent:
        for each in (refuses, silent):
            each.bind(("127.0.0.1", 0))
        silent.listen()
        refusing, mute = (f"http://127.0.0.1:{each.getsockname()[1]}" for each in (refuses, silent))
        beside = _leaving(
            """
            for n, url in enumerate(sys.argv[2:]):
                upstreams = [PaymentKit(url, "key"), Ledger()]
                used = Agent(f"{data_dir}/used-{n}", upstreams, exit_timeout=60)
                assert used.add_activity("acme", "u-1", "active").delivered(30)
                started = Agent(f"{data_dir}/started-{n}", [Per("secret", url=url)], exit_timeout=60)
                started.start(wait=True)
            """,
            tmp_path,
            refusing,
            mute,
        )
    assert beside < 60 * _leaving("import httpx, asyncio, structlog", tmp_path)


def test_a_program_that_ends_right_after_an_event_delivers_it(tmp_path, upstream: UpstreamServer):
    """The HTTP client is then loaded while the program ends. (Threads are there: some Pythons start none by then.)"""
    run(
        """
        agent = Agent(data_dir, [Per("secret", url=sys.argv[2])], exit_timeout=30)
        agent.start(wait=True)
        agent.add_activity("acme", "u-1", "active")
        """,
        tmp_path,
        upstream.url,
    )
    assert upstream.score().users == ["u-1"]
    assert Agent(tmp_path).books()["per"].delivered == 1


def test_a_program_that_ends_while_an_upstream_is_down_can_still_say_so(tmp_path):
    """What writes log lines, and what reckons pauses, is then loaded while the program ends."""
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        out = run(
            """
            import logging
            logging.basicConfig(stream=sys.stdout, format="%(message)s")
            agent = Agent(data_dir, [Per("secret", url=sys.argv[2])], exit_timeout=30)
            agent.start(wait=True)
            agent.add_activity("acme", "u-1", "active")
            """,
            tmp_path,
            f"http://127.0.0.1:{dead.getsockname()[1]}",
        )
    assert "the destination is in trouble: its events are kept" in out
    assert "defect" not in out
    assert Agent(tmp_path).books()["per"].pending == 1
