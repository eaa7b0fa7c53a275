"""Ends, forks and neighbours: a program may stop in any way that it likes, and nothing is lost or doubled."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from programs import run, start
from upstream import UpstreamServer
from waiting import until

from per_agent import Agent, DeliverySettings, IntakeSettings, MemoryDestination, Per, SpoolSettings
from per_agent.agent.engine import Engine
from per_agent.spool import snapshots

QUICK = DeliverySettings(backoff_initial=0.1, backoff_max=0.5)


def _delivered(data_dir: Path) -> tuple[int, int]:
    """Delivers what is left. How many events the books count as delivered, and the ledger as unique users."""
    with Agent(data_dir, spool=SpoolSettings(adopt_interval=0.1)) as agent:
        # Spools that dead processes left are found by looking from time to time.
        until(lambda: agent.flush(10) and all(not c.pending for c in agent.books().values()), timeout=60)
        books = agent.books()["ledger"]
        assert books.balanced
        report = agent.get_report("2020-01-01T00:00:00Z")
    types = report["result"]["activityTypes"]
    return books.delivered, sum(b["unique"] for t in types.values() for b in t["billingIds"].values())


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("", 0),
        ("sys.exit(0)", 0),
        ("sys.exit(3)", 3),
        ("raise RuntimeError('of the host')", 1),
        ("signal.raise_signal(signal.SIGINT)", -signal.SIGINT),
        ("threading.Thread(target=lambda: (time.sleep(0.05), sys.exit(0))).start()", 0),
    ],
)
def test_a_program_that_ends_without_close_loses_nothing(tmp_path, ending, status):
    program = start(
        f"""
        agent = Agent(data_dir)
        for i in range(2000):
            agent.add_activity("acme", f"u-{{i}}", "active")
        {ending}
        """,
        tmp_path,
    )
    program.communicate(timeout=60)
    assert program.returncode == status
    assert _delivered(tmp_path) == (2000, 2000)


def test_a_program_that_ends_while_the_upstream_is_silent_leaves_in_time_and_keeps_all(
    tmp_path, upstream: UpstreamServer
):
    upstream.rule(path="/activities.add", delay=30)
    began = time.monotonic()
    run(
        """
        agent = Agent(data_dir, [Per("secret", url=sys.argv[2])], exit_timeout=0.5)
        for i in range(500):
            agent.add_activity("acme", f"u-{i}", "active")
        """,
        tmp_path,
        upstream.url,
    )
    assert time.monotonic() - began < 15
    upstream.clear_rules()
    with Agent(tmp_path, [Per("secret", url=upstream.url)], delivery=QUICK) as agent:
        assert agent.books()["per"].accepted == 500
        assert agent.flush(30)
    assert len(set(upstream.score().users)) == 500


def test_a_program_ends_at_once_when_the_upstream_is_dead(tmp_path):
    out = run(
        """
        agent = Agent(data_dir, [Per("secret", url="http://127.0.0.1:9")], exit_timeout=30)
        agent.add_activity("acme", "u-1", "active").stored()
        while agent.status()["destinations"]["per"]["state"] == "open":
            time.sleep(0.01)
        began = time.monotonic()
        agent.close(timeout=30)
        print(time.monotonic() - began)
        """,
        tmp_path,
    )
    assert float(out) < 5, "a destination that is in trouble is not waited for"


def test_the_child_of_a_fork_before_first_use_records_by_itself(tmp_path):
    run(
        """
        agent = Agent(data_dir)
        pid = os.fork()
        who = "child" if pid == 0 else "parent"
        for i in range(300):
            agent.add_activity("acme", f"{who}-{i}", "active")
        if pid:
            os.waitpid(pid, 0)
        """,
        tmp_path,
    )
    assert _delivered(tmp_path) == (600, 600)


def test_a_fork_after_first_use_neither_loses_nor_doubles(tmp_path):
    run(
        """
        agent = Agent(data_dir)
        ids = [agent.add_activity("acme", f"before-{i}", "active").id for i in range(1000)]
        read, write = os.pipe()
        pid = os.fork()
        who = "child" if pid == 0 else "parent"
        ids = [agent.add_activity("acme", f"{who}-{i}", "active").id for i in range(1000)]
        if pid == 0:
            os.write(write, ids[-1].encode())
        else:
            os.waitpid(pid, 0)
            assert os.read(read, 100).decode() not in ids
        """,
        tmp_path,
    )
    assert _delivered(tmp_path) == (3000, 3000)


def test_forty_forks_beside_busy_threads_hang_nobody(tmp_path):
    out = run(
        """
        agent = Agent(data_dir, intake=IntakeSettings(overflow="block"))
        stop = threading.Event()
        recorded = [0]
        def busy():
            while not stop.is_set():
                agent.add_activity("acme", f"busy-{recorded[0]}", "active")
                recorded[0] += 1
                if recorded[0] % 100 == 0:
                    time.sleep(0.001)
        thread = threading.Thread(target=busy)
        thread.start()
        children = []
        for n in range(40):
            pid = os.fork()
            if pid == 0:
                receipts = [agent.add_activity("acme", f"child-{n}-{i}", "active") for i in range(10)]
                stored = all(receipt.stored(30) for receipt in receipts)
                agent.close(0.1)
                os._exit(0 if stored else 1)
            children.append(pid)
        assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
        stop.set()
        thread.join()
        agent.close(60)
        print(recorded[0])
        """,
        tmp_path,
        timeout=120,
    )
    total = int(out) + 400
    assert _delivered(tmp_path) == (total, total)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_children_that_simply_return_lose_nothing(tmp_path, method):
    script = tmp_path / "parent.py"
    script.write_text(
        f"""
import multiprocessing, sys
from per_agent import Agent
agent = Agent(sys.argv[1])

def work(n):
    for i in range(100):
        agent.add_activity("acme", f"{{n}}-{{i}}", "active")

if __name__ == "__main__":
    context = multiprocessing.get_context("{method}")
    work("parent")
    children = [context.Process(target=work, args=(n,)) for n in range(4)]
    for child in children: child.start()
    for child in children: child.join()
    assert all(child.exitcode == 0 for child in children)
"""
    )
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "d")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert _delivered(tmp_path / "d") == (500, 500)


@pytest.mark.signals
@pytest.mark.parametrize("moment", ["call", "return"])
def test_a_signal_handler_that_raises_while_an_agent_starts_leaves_one_that_works(tmp_path, moment):
    def strike(frame, event, _):
        if frame.f_code is Engine.start.__code__ and event == moment:
            sys.settrace(None)
            raise KeyboardInterrupt
        return strike

    agent = Agent(tmp_path, [MemoryDestination()])
    before = sys.gettrace()
    sys.settrace(strike)
    try:
        with pytest.raises(KeyboardInterrupt):
            agent.start()
    finally:
        sys.settrace(before)
    ended = threading.Thread(target=agent.close, daemon=True)
    try:
        assert agent.add_activity("acme", "u", "active").delivered(30)
    finally:
        ended.start()
        ended.join(30)
    assert not ended.is_alive()


# The configuration is a pipe, so reading it lasts until that is closed.
CHOOSING = """
import per_agent
os.mkfifo(sys.argv[2])
os.environ.update(PER_AGENT_CONFIG=sys.argv[2], PER_AGENT_DATA_DIR=data_dir)
signal.alarm(20)
def come_between():
    os.environ.pop("PER_AGENT_CONFIG")
    assert add_activity("acme", "between", "active").stored(10)
"""


def test_a_signal_handler_that_records_while_the_default_agent_is_made_goes_on(tmp_path):
    run(
        CHOOSING
        + """
def handler(*_):
    come_between()
    os.close(writing)
signal.signal(signal.SIGUSR1, handler)
def strike():
    global writing
    writing = os.open(sys.argv[2], os.O_WRONLY)  # waits for who reads it
    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
threading.Thread(target=strike).start()
add_activity("acme", "first", "active")
""",
        tmp_path / "data",
        str(tmp_path / "config"),
    )
    assert len(list((tmp_path / "data" / "spools").iterdir())) == 1, "one agent, whoever made it"
    assert _delivered(tmp_path / "data") == (2, 2)


def test_a_child_that_is_forked_while_the_default_agent_is_made_makes_its_own(tmp_path):
    out = run(
        CHOOSING
        + """
thread = threading.Thread(target=add_activity, args=("acme", "first", "active"))
thread.start()
writing = os.open(sys.argv[2], os.O_WRONLY)  # waits for who reads it
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    come_between()
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
os.close(writing)
thread.join()
""",
        tmp_path / "data",
        str(tmp_path / "config"),
    )
    assert int(out) == 0
    assert _delivered(tmp_path / "data") == (2, 2)


def test_several_agents_in_one_process_and_several_processes_share_one_folder(tmp_path):
    programs = [
        start(
            """
            agents = [Agent(data_dir) for _ in range(3)]
            for i in range(500):
                for n, agent in enumerate(agents):
                    agent.add_activity("acme", f"{sys.argv[2]}-{n}-{i}", "active")
            """,
            tmp_path,
            str(n),
        )
        for n in range(3)
    ]
    for program in programs:
        _, err = program.communicate(timeout=60)
        assert program.returncode == 0, err
    assert _delivered(tmp_path) == (4500, 4500)


def test_a_dozen_short_programs_one_after_another_leave_one_spool(tmp_path):
    for n in range(12):
        run('Agent(data_dir, exit_timeout=0).add_activity("acme", sys.argv[2], "active")', tmp_path, f"u-{n}")
    assert len(snapshots(tmp_path)) == 1
    assert _delivered(tmp_path) == (12, 12)


def test_a_running_agent_adopts_what_a_dead_neighbour_left_and_carries_its_books_over(
    tmp_path, upstream: UpstreamServer
):
    upstream.rule(path="/activities.add", status=503)
    with Agent(
        tmp_path, [Per("secret", url=upstream.url)], delivery=QUICK, spool=SpoolSettings(adopt_interval=0.2)
    ) as agent:
        agent.add_activity("acme", "survivor", "active").stored()
        neighbour = start(
            """
            agent = Agent(data_dir, [Per("secret", url=sys.argv[2])])
            assert all([agent.add_activity("acme", f"u-{i}", "active").stored() for i in range(50)])
            print("stored", flush=True)
            time.sleep(60)
            """,
            tmp_path,
            upstream.url,
        )
        assert neighbour.stdout is not None
        assert neighbour.stdout.readline() == "stored\n"
        neighbour.send_signal(signal.SIGKILL)
        neighbour.communicate()
        assert len(snapshots(tmp_path)) == 2
        assert agent.books()["per"].accepted == 51
        upstream.clear_rules()
        until(lambda: agent.books()["per"].delivered == 51)
        until(lambda: len(snapshots(tmp_path)) == 1, timeout=30)
        until(lambda: len(list((tmp_path / "spools").iterdir())) == 1)
        books = agent.books()["per"]
        assert (books.accepted, books.delivered, books.pending) == (51, 51, 0)
    assert len(set(upstream.score().users)) == 51


def test_events_of_a_destination_that_is_no_longer_configured_are_kept(tmp_path, upstream: UpstreamServer):
    upstream.rule(path="/activities.add", status=503)
    with Agent(tmp_path, [Per("secret", url=upstream.url)], delivery=QUICK) as agent:
        agent.add_activity("acme", "u-1", "active")
    with Agent(tmp_path) as agent:
        agent.add_activity("acme", "u-2", "active")
        assert agent.flush(10)
        assert agent.books()["per"].pending == 1
        assert agent.books()["ledger"].delivered == 1
    upstream.clear_rules()
    with Agent(tmp_path, [Per("secret", url=upstream.url)], delivery=QUICK) as agent:
        assert agent.flush(30)
    assert upstream.score().users == ["u-1"]


def test_the_books_know_each_event_once_while_it_is_on_its_way_to_the_disk(tmp_path):
    begun = returned = 0
    stop = threading.Event()
    with Agent(tmp_path, [MemoryDestination()], intake=IntakeSettings(linger=0.05)) as agent:
        agent.start(wait=True)

        def record() -> None:
            nonlocal begun, returned
            while not stop.is_set():
                begun += 1
                agent.add_activity("acme", "u", "active")
                returned += 1
                time.sleep(0.0005)

        recorder = threading.Thread(target=record)
        recorder.start()
        try:
            for _ in range(500):
                least = returned
                accepted = agent.books()["memory"].accepted
                assert least <= accepted <= begun
        finally:
            stop.set()
            recorder.join()
