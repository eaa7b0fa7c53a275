"""The lives that host processes lead: prefork servers, pools, jobs, and every way to die. Each event is delivered once."""

import http.client
import itertools
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from accounts import delivered_once
from programs import run, start
from waiting import until

from per_agent.spool import snapshots

HERE = Path(__file__).parent
JOB = HERE / "job.py"


def _seeded() -> random.Random:
    seed = int(os.environ.get("PER_AGENT_TEST_SEED", random.randrange(2**32)))
    print(f"seed {seed} (set PER_AGENT_TEST_SEED to repeat)")
    return random.Random(seed)


# gunicorn

_ENDED = r"(?m)^.*Error handling request .*\nTraceback .*\n(?:[ \t].*\n)*SystemExit.*\n?"


class Gunicorn:
    """gunicorn with the application of gunicorn_app.py, and who was answered."""

    def __init__(self, data_dir: Path, log: Path, *options: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._port = self._listener.getsockname()[1]
        self._log = log
        self.loaded = ["master"] if "--preload" in options else []
        words = ["--bind", f"fd://{self._listener.fileno()}", "--log-level", "warning", "--no-control-socket"]
        with log.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", *words, *options, "gunicorn_app:application"],
                env={
                    **os.environ,
                    "RECORD_IN": str(data_dir),
                    "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
                    **{name: user for user in self.loaded for name in ("RECORD_AT_LOAD",)},
                },
                pass_fds=[self._listener.fileno()],
                stdout=said,
                stderr=said,
            )
        self._listener.close()
        self.answered: list[str] = []
        self.asked: list[str] = []
        self.workers: set[int] = set()

    def ask(self, user: str) -> int | None:
        """The process that answered, None where nobody did."""
        self.asked.append(user)
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request("GET", f"/?{user}")
            worker = int(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()
        self.answered.append(user)
        self.workers.add(worker)
        return worker

    def said(self) -> list[str]:
        """What it wrote, but for its own words about workers that a signal ended, if only after an answer."""
        lines = re.sub(_ENDED, "", self._log.read_text()).splitlines()
        return [
            line for line in lines if not re.search(r"Worker \(pid:\d+\) was sent SIG(KILL|QUIT|TERM)", line)
        ]


@contextmanager
def _gunicorn(data_dir: Path, log: Path, *options: str) -> Iterator[Gunicorn]:
    server = Gunicorn(data_dir, log, *options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait(30)


@pytest.mark.parametrize(
    ("options", "end"),
    [
        (["--preload"], signal.SIGTERM),
        (["--worker-class", "gthread", "--threads", "4"], signal.SIGQUIT),
        pytest.param(["--preload"], signal.SIGQUIT, marks=pytest.mark.slow),
        pytest.param(["--worker-class", "gthread", "--threads", "4"], signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param([], signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(["--preload", "--worker-class", "gthread"], signal.SIGQUIT, marks=pytest.mark.slow),
    ],
    ids=lambda value: " ".join(value) or "sync" if isinstance(value, list) else value.name,
)
def test_each_request_that_gunicorn_answered_is_billed_once(tmp_path, options, end):
    data_dir = tmp_path / "data"
    with _gunicorn(data_dir, tmp_path / "log", "--workers", "2", "--max-requests", "40", *options) as server:
        until(lambda: server.ask("first") is not None)

        def drive(driver: int) -> None:
            for n in range(100):
                worker = server.ask(f"d{driver}-{n}")
                if driver == 0 and n in (20, 60) and worker is not None:
                    os.kill(worker, signal.SIGKILL)

        drivers = [threading.Thread(target=drive, args=(driver,)) for driver in range(4)]
        for driver in drivers:
            driver.start()
        for driver in drivers:
            driver.join()
        server.process.send_signal(end)
        assert server.process.wait(60) == 0
    assert len(server.workers) > 4, "workers were recycled"
    assert len(server.answered) > 300
    assert server.said() == []
    delivered_once(data_dir, {*server.answered, *server.loaded}, server.asked)


# Forks


def test_children_that_are_forked_beside_busy_threads_and_leave_at_once_lose_nothing(tmp_path):
    run(
        """
        agent = Agent(data_dir, intake=IntakeSettings(overflow="block"), exit_timeout=30)
        stop = threading.Event()
        def busy(thread):
            for n in range(1_000_000):
                if stop.is_set():
                    counts[thread] = n
                    return
                agent.add_activity("acme", f"busy-{thread}-{n}", "active")
                stop.wait(0.0002)
        counts = {}
        threads = [threading.Thread(target=busy, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for child in range(25):
            pid = os.fork()
            if pid == 0:
                for n in range(child * 4 + 1):
                    agent.add_activity("acme", f"child-{child}-{n}", "active")
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        stop.set()
        for thread in threads:
            thread.join()
        import json
        with open(sys.argv[2], "w") as file:
            json.dump(counts, file)
        """,
        tmp_path / "data",
        str(tmp_path / "counts"),
    )
    counts = json.loads((tmp_path / "counts").read_text())
    busy = {f"busy-{thread}-{n}" for thread, count in counts.items() for n in range(count)}
    children = {f"child-{child}-{n}" for child in range(25) for n in range(child * 4 + 1)}
    delivered_once(tmp_path / "data", busy | children)


def test_a_child_holds_nothing_of_its_parents_journal_even_where_threads_were_writing(tmp_path):
    out = run(
        """
        agent = Agent(data_dir, intake=IntakeSettings(overflow="block"), exit_timeout=30)
        agent.add_activity("acme", "first", "active").stored()
        sys.setswitchinterval(0.0001)  # so that forks come while calls are half-done
        stop = threading.Event()
        def busy(thread):
            while not stop.is_set():
                for n in range(50):
                    agent.add_activity("acme", f"busy-{thread}-{n}", "active")
                stop.wait(0.001)
        threads = [threading.Thread(target=busy, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        held = 0
        for _ in range(60):
            pid = os.fork()
            if pid == 0:
                with open("/proc/self/maps") as maps:
                    os._exit(".journal" in maps.read())
            held += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        stop.set()
        for thread in threads:
            thread.join()
        print(held)
        """,
        tmp_path,
    )
    assert int(out) == 0, "of sixty children"


def test_a_child_does_not_inherit_the_locks_of_a_look_at_what_the_dead_left(tmp_path):
    run("agent = Agent(data_dir); agent.add_activity('acme', 'u', 'active'); os._exit(0)", tmp_path)
    out = run(
        """
        from pathlib import Path
        from per_agent.event import Identifiers
        from per_agent.journal import make
        from per_agent.spool import take_journals
        folder = Path(data_dir)
        for n in range(20):
            journal = make(folder, 10, Identifiers())
            journal.write(b"{}", ("another",), 8)
            journal.let_go()
            del journal
        stop = threading.Event()
        def look():
            while not stop.is_set():
                assert take_journals(folder, ["mine"], folder) == []
                stop.wait(0.001)
        thread = threading.Thread(target=look)
        thread.start()
        held = 0
        for _ in range(100):
            pid = os.fork()
            if pid == 0:
                mine = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")[:-1]]
                os._exit(any(name.endswith(".journal") for name in mine))
            held += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        stop.set()
        thread.join()
        print(held)
        """,
        tmp_path,
    )
    assert int(out) == 0, "of a hundred children"


def test_a_chain_of_fifty_forks_gathers_no_descriptors_and_no_journals(tmp_path):
    out = run(
        """
        agent = Agent(data_dir)
        def held():
            with open("/proc/self/maps") as maps:
                spans = [line.split()[0].split("-") for line in maps]
            sizes = [int(end, 16) - int(begin, 16) for begin, end in spans]
            return len(os.listdir("/proc/self/fd")), sum(size > 20_000_000 for size in sizes)
        def live(n):
            assert agent.add_activity("acme", f"u-{n}", "active").stored(30)
            if n in (3, 50):
                print(*held(), flush=True)
            if n < 50:
                pid = os.fork()
                if pid == 0:
                    live(n + 1)
                    agent.close(30)
                    os._exit(0)
                assert os.waitpid(pid, 0)[1] == 0
        live(0)
        """,
        tmp_path,
    )
    early, late = ([int(number) for number in line.split()] for line in out.splitlines())
    assert late[0] <= early[0] + 5, (
        "descriptors: which of them are open at a moment differs, their number does not grow"
    )
    assert late[1] <= early[1] + 1, "mappings of a journal's size"
    delivered_once(tmp_path, {f"u-{n}" for n in range(51)})


def test_a_pool_of_forked_workers_that_are_ended_by_sigterm_loses_nothing(tmp_path):
    run(
        """
        import mmap
        agent = Agent(data_dir, intake=IntakeSettings(overflow="block"))
        agent.add_activity("acme", "parent", "active").stored()
        with open(sys.argv[2], "r+b") as file:
            returned = memoryview(mmap.mmap(file.fileno(), 8 * 4)).cast("Q")
        def work(worker):
            for n in range(1_000_000):
                agent.add_activity("acme", f"w{worker}-{n}", "active")
                returned[worker] = n + 1
                if n % 50 == 0:
                    time.sleep(0.002)
        pids = []
        for worker in range(4):
            pid = os.fork()
            if pid == 0:
                work(worker)
            pids.append(pid)
        while not all(count > 300 for count in returned):
            time.sleep(0.01)
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        for pid in pids:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
        """,
        tmp_path / "data",
        str(_counts(tmp_path, 4)),
    )
    returned = _returned(tmp_path)
    sure = {f"w{worker}-{n}" for worker, count in enumerate(returned) for n in range(count)}
    delivered_once(tmp_path / "data", {"parent", *sure}, {f"w{w}-{n}" for w, n in enumerate(returned)})


def _counts(folder: Path, several: int) -> Path:
    counts = folder / "counts"
    counts.write_bytes(bytes(8 * several))
    return counts


def _returned(folder: Path) -> list[int]:
    written = (folder / "counts").read_bytes()
    return list(struct.unpack(f"<{len(written) // 8}Q", written))


POOLS = {
    "pool": "with context.Pool(2, maxtasksperchild=3) as pool: assert sum(pool.map(work, range(12), 1)) == 120",
    "executor": """
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        assert sum(pool.map(work, range(12))) == 120""",
}


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("pool", POOLS)
def test_what_workers_of_a_pool_record_is_delivered(tmp_path, pool, method):
    script = tmp_path / "parent.py"
    script.write_text(
        f"""
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from per_agent import Agent
agent = Agent(sys.argv[1])

def work(task):
    for n in range(10):
        agent.add_activity("acme", f"{{task}}-{{n}}", "active")
    return 10

if __name__ == "__main__":
    agent.add_activity("acme", "parent", "active")
    context = multiprocessing.get_context("{method}")
    {POOLS[pool]}
"""
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(tmp_path / "data")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    delivered_once(tmp_path / "data", {"parent", *(f"{task}-{n}" for task in range(12) for n in range(10))})


# Deaths


@pytest.mark.parametrize("events", [1, 2000])
@pytest.mark.parametrize(
    ("death", "status"),
    [
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("ctypes.string_at(0)", -signal.SIGSEGV),
        ("os.abort()", -signal.SIGABRT),
        ("os._exit(7)", 7),
        ("os.execv('/bin/true', ['true'])", 0),
    ],
)
def test_a_death_right_after_the_last_event_loses_none(tmp_path, death, status, events):
    program = start(
        f"""
        import ctypes, resource
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        agent = Agent(data_dir)
        for n in range({events}):
            agent.add_activity("acme", f"u-{{n}}", "active")
        {death}
        """,
        tmp_path,
    )
    _, err = program.communicate(timeout=60)
    assert (program.returncode, err) == (status, "")
    delivered_once(tmp_path, {f"u-{n}" for n in range(events)})


def test_two_processes_with_two_agents_each_on_one_folder_die_and_lose_nothing(tmp_path):
    data_dir = tmp_path / "data"
    jobs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        jobs.append(_job(data_dir, _counts(tmp_path / name, 1), name, 1_000_000, agents=2))
    until(lambda: all(_returned(tmp_path / name)[0] > 2000 for name in ("a", "b")))
    for job in jobs:
        job.kill()
        job.communicate()
    returned = {name: _returned(tmp_path / name)[0] for name in ("a", "b")}
    sure = {f"{name}-{n}" for name, count in returned.items() for n in range(count)}
    delivered_once(data_dir, sure, {f"{name}-{count}" for name, count in returned.items()})


def _job(data_dir: Path, counts: Path, prefix: str, events: int, agents: int = 1) -> "subprocess.Popen[str]":
    words = [str(data_dir), str(counts), prefix, str(events), str(agents)]
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(JOB), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_forty_jobs_of_which_half_are_killed_leave_one_spool_and_no_journal(tmp_path):
    moments = _seeded()
    data_dir = tmp_path / "data"
    sure, perhaps = set(), set()
    killed = set(moments.sample(range(40), 20))
    for n in range(40):
        with _job(data_dir, _counts(tmp_path, 1), f"j{n}", moments.choice([1, 20, 3000])) as job:
            if n in killed:
                # The moment of death is the experiment: half of them while Python is starting, or just after.
                if moments.random() < 0.8:
                    assert job.stdout is not None
                    job.stdout.readline()
                    time.sleep(moments.uniform(0, 0.1))
                else:
                    time.sleep(moments.uniform(0, 0.5))
                job.kill()
            _, err = job.communicate(timeout=60)
            assert err == ""
            assert n in killed or job.returncode == 0
        count = _returned(tmp_path)[0]
        sure |= {f"j{n}-{i}" for i in range(count)}
        perhaps.add(f"j{n}-{count}")
    assert len(list((data_dir / "spools").iterdir())) <= 2, "the next job takes over what one leaves"
    delivered_once(data_dir, sure, perhaps)
    assert len(snapshots(data_dir)) == 1


# Ends


def test_threads_that_end_by_sys_exit_take_nothing_with_them(tmp_path):
    run(
        """
        agent = Agent(data_dir)
        def leave(n):
            agent.add_activity("acme", f"u-{n}", "active")
            sys.exit(n)
        for n in range(50):
            threading.Thread(target=leave, args=(n,)).start()
        """,
        tmp_path,
    )
    delivered_once(tmp_path, {f"u-{n}" for n in range(50)})


def test_a_thread_that_records_while_the_program_ends_is_refused_or_its_events_are_delivered(tmp_path):
    run(
        """
        import mmap
        agent = Agent(data_dir, intake=IntakeSettings(overflow="block"), exit_timeout=30)
        with open(sys.argv[2], "r+b") as file:
            returned = memoryview(mmap.mmap(file.fileno(), 8 * 4)).cast("Q")
        def record(thread):
            for n in range(1_000_000):
                try:
                    agent.add_activity("acme", f"t{thread}-{n}", "active")
                except AgentClosed:
                    return
                returned[thread] = n + 1
        for thread in range(4):
            threading.Thread(target=record, args=(thread,), daemon=True).start()
        while not all(count > 100 for count in returned):
            time.sleep(0.01)
        """,
        tmp_path / "data",
        str(_counts(tmp_path, 4)),
    )
    returned = _returned(tmp_path)
    sure = {f"t{thread}-{n}" for thread, count in enumerate(returned) for n in range(count)}
    delivered_once(tmp_path / "data", sure, {f"t{thread}-{n}" for thread, n in enumerate(returned)})


def test_what_is_recorded_by_hooks_and_finalizers_at_the_end_is_delivered_or_refused(tmp_path):
    out = run(
        """
        import atexit
        def record(name):
            try:
                agent.add_activity("acme", name, "active")
            except AgentClosed:
                print("refused", name, flush=True)
            else:
                print("accepted", name, flush=True)
        class Late:
            def __init__(self, name):
                self.name = name
            def __del__(self, record=record):
                record(self.name)
        atexit.register(record, "after-ours")  # the last to be registered is the first to be called
        agent = Agent(data_dir)
        record("under-way")
        atexit.register(record, "before-ours")
        late = Late("global")
        module = type(sys)("module")
        module.late = Late("in-a-module")
        sys.modules["module"] = module
        """,
        tmp_path,
    )
    became = dict(reversed(line.split()) for line in out.splitlines())
    assert became == {
        "under-way": "accepted",
        "before-ours": "accepted",
        "after-ours": "refused",
        "global": "refused",
        "in-a-module": "refused",
    }
    delivered_once(tmp_path, {"under-way", "before-ours"})


def test_a_host_that_exits_from_a_signal_handler_once_more_while_it_ends_is_not_answered_with_a_traceback(
    tmp_path,
):
    run(
        """
        class Slow(MemoryDestination):
            def send(self, events):
                time.sleep(60)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        agents = [Agent(data_dir, [Slow(name="ledger")], exit_timeout=30) for _ in range(2)]
        for n, agent in enumerate(agents):
            agent.add_activity("acme", f"u-{n}", "active").stored(30)
        def impatient():
            for _ in agents:
                running = sum(agent.status()["running"] for agent in agents)
                while sum(agent.status()["running"] for agent in agents) == running:
                    time.sleep(0.01)
                time.sleep(0.1)
                os.kill(os.getpid(), signal.SIGTERM)
        threading.Thread(target=impatient, daemon=True).start()
        """,
        tmp_path,
    )
    delivered_once(tmp_path, {"u-0", "u-1"})


def test_an_agent_whose_first_event_comes_at_the_very_end_stores_it(tmp_path):
    run(
        """
        import atexit
        agent = Agent(data_dir)
        atexit.register(lambda: agent.add_activity("acme", "u-1", "active"))
        """,
        tmp_path,
    )
    delivered_once(tmp_path, {"u-1"})


# What is left behind in a process


def test_sixty_agents_that_were_opened_and_closed_leave_no_thread_and_no_descriptor(tmp_path):
    out = run(
        """
        def held():
            with open("/proc/self/maps") as maps:
                journals = maps.read().count(".journal")
            return threading.active_count(), len(os.listdir("/proc/self/fd")), journals
        for n in range(60):
            with Agent(data_dir) as agent:
                agent.add_activity("acme", f"u-{n}", "active")
            if n == 2:
                print(*held())
        print(*held(), len(os.listdir("/proc/self/task")))
        """,
        tmp_path,
    )
    early, late = ([int(number) for number in line.split()] for line in out.splitlines())
    assert late == [*early, 1]
    assert early[0] == 1
    assert early[2] == 0
    delivered_once(tmp_path, {f"u-{n}" for n in range(60)})


def test_a_program_on_uvloop_waits_for_receipts_and_ends_without_a_word(tmp_path):
    run(
        """
        import asyncio, uvloop
        agent = Agent(data_dir)
        async def client(c):
            for n in range(20):
                receipt = agent.add_activity("acme", f"c{c}-{n}", "active")
                if n % 5 == 0:
                    assert await receipt
                if n == 19:
                    assert await receipt.delivered_async()
        async def main():
            await asyncio.gather(*(client(c) for c in range(30)))
            agent.add_activity("acme", "last", "active")
        uvloop.run(main())
        """,
        tmp_path,
    )
    delivered_once(tmp_path, {"last", *(f"c{c}-{n}" for c, n in itertools.product(range(30), range(20)))})
