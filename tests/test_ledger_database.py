"""The ledger's file: durable, shared by threads, processes and forks, and honest about trouble."""

import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import stat
import threading
import time
from pathlib import Path

import pytest

from per_agent import errors
from per_agent.destinations.local import Ledger
from per_agent.destinations.outcome import Delivered, Halt, Parked, Retry
from per_agent.destinations.protocol import Destination
from per_agent.event import Activity, MeterEvent
from per_agent.ledger import Database, schema

NOW = 1_700_000_000.0
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path):
    ledger = Ledger(path)
    yield ledger
    ledger.close()


def activities(ids, billing="acme"):
    return [Activity(f"id-{number}", billing, f"user-{number}", "active", NOW) for number in ids]


def meter_events(ids, customer="cus_1"):
    return [MeterEvent(f"id-{number}", "api.calls", customer, "0.1", NOW) for number in ids]


def users(ledger, billing="acme"):
    types = ledger.get_report("2023-11-01T00:00:00Z")["result"]["activityTypes"]
    return types.get("active", {"billingIds": {}})["billingIds"].get(billing, {"unique": 0})["unique"]


def make_meter(ledger):
    return ledger.meters.create(name="n", event_name="api.calls", unit="u")


def counted(ledger):
    return ledger.meter_events.list()["count"]


def open_files(folder):
    links = [str(link.resolve()) for link in Path("/proc/self/fd").iterdir()]
    return [link for link in links if link.startswith(str(folder))]


# -- as a destination


def test_a_ledger_is_a_destination():
    destination: Destination = Ledger()
    assert destination.name == "ledger"
    assert destination.takes == {Activity, MeterEvent}
    assert destination.concurrency == 1


def test_the_file_lies_in_the_data_folder_unless_a_path_was_given(tmp_path):
    for given, expected in ((None, "data/ledger.db"), (tmp_path / "own" / "my.db", "own/my.db")):
        ledger = Ledger(given)
        ledger.open(tmp_path / "data")
        assert ledger.send(activities([1])) == [Delivered()]
        assert (tmp_path / expected).exists()
        ledger.close()


def test_without_a_path_and_before_open_the_answer_is_halt_and_not_an_error():
    (outcome,) = Ledger().send(activities([1]))
    assert isinstance(outcome, Halt)
    assert "open()" in outcome.reason


def test_it_may_be_sent_to_after_close(ledger):
    ledger.send(activities([1]))
    ledger.close()
    assert ledger.send(activities([2])) == [Delivered()]
    assert users(ledger) == 2


def test_an_empty_batch_is_no_trouble(ledger):
    assert list(ledger.send([])) == []


# -- the file


def test_the_files_are_the_owners_only(ledger, path):
    ledger.send(activities([1]))
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {"ledger.db": 0o600, "ledger.db-wal": 0o600, "ledger.db-shm": 0o600}


def test_delivered_means_on_the_disk(ledger, path):
    ledger.send(activities([1]))
    with ledger._database._borrowed() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_closing_leaves_one_file_and_no_open_ones(ledger, path):
    ledger.send(activities([1]))
    users(ledger)
    ledger.close()
    assert [file.name for file in path.parent.iterdir()] == ["ledger.db"]
    assert open_files(path.parent) == []


def test_a_deleted_file_is_noticed_and_made_anew(ledger, path):
    ledger.send(activities([1]))
    for file in list(path.parent.iterdir()):
        file.unlink()
    assert ledger.send(activities([2])) == [Delivered()]
    assert path.exists()
    assert users(ledger) == 1


def test_a_file_from_a_newer_version_halts_and_says_so(ledger, path):
    ledger.send(activities([1]))
    ledger.close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.close()
    (outcome,) = ledger.send(activities([2]))
    assert isinstance(outcome, Halt)
    assert f"newer version: schema {schema.VERSION + 1}" in outcome.reason
    with pytest.raises(errors.Unavailable, match="newer version"):
        ledger.get_report()


def test_another_applications_file_halts_and_is_left_alone(ledger, path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    connection.close()
    before = path.read_bytes()
    (outcome,) = ledger.send(activities([1]))
    assert isinstance(outcome, Halt)
    assert "something else" in outcome.reason
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["header", "middle"])
def test_a_damaged_file_halts_and_does_not_raise(ledger, path, damage):
    ledger.send(activities(range(5000)))
    ledger.close()
    content = bytearray(path.read_bytes())
    begin = 0 if damage == "header" else 4096
    content[begin:] = b"\xff" * (len(content) - begin)
    path.write_bytes(content)
    (outcome,) = ledger.send(activities([5001]))
    assert isinstance(outcome, Halt)
    assert str(path) in outcome.reason
    with pytest.raises(errors.Unavailable) as caught:
        ledger.get_report()
    assert caught.value.status == 500
    assert not ledger.probe("meter:live:x")


def test_a_folder_that_cannot_be_made_halts(tmp_path):
    (tmp_path / "file").write_text("")
    ledger = Ledger(tmp_path / "file" / "ledger.db")
    assert isinstance(ledger.send(activities([1]))[0], Halt)
    with pytest.raises(errors.Unavailable):
        ledger.meters.list()


def _send_under_a_file_size_limit(path, answers):
    ledger = Ledger(path)
    make_meter(ledger)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, resource.RLIM_INFINITY))
    sent = 0
    while True:
        outcomes = ledger.send(activities(range(sent, sent + 1000)))
        if outcomes[0] != Delivered():
            break
        sent += 1000
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    after = ledger.send(activities(range(sent, sent + 1000)))
    answers.put((sent, set(outcomes), set(after), users(ledger)))
    ledger.close()


def test_a_disk_that_takes_no_more_means_retry_and_costs_nothing(path):
    answers = SPAWN.Queue()
    process = SPAWN.Process(target=_send_under_a_file_size_limit, args=(path, answers))
    process.start()
    sent, outcomes, after, found = answers.get(timeout=60)
    process.join(10)
    assert sent > 0
    (outcome,) = outcomes
    assert isinstance(outcome, Retry)
    assert "disk" in outcome.reason
    assert after == {Delivered()}
    assert found == sent + 1000


# -- threads


def test_a_locked_database_means_retry_for_all_and_unavailable_for_calls(ledger, path):
    make_meter(ledger)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    assert ledger.send(activities([1, 2])) == [Retry("ledger: database is locked")] * 2
    assert time.monotonic() - began < 8
    assert users(ledger) == 0  # readers do not wait
    blocker.execute("ROLLBACK")
    blocker.close()
    assert ledger.send(activities([1, 2])) == [Delivered()] * 2


def test_a_locked_database_is_unavailable_to_calls(path):
    database = Database(path, busy_seconds=0.1)
    database.write("make", lambda connection: None)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(errors.Unavailable, match="locked") as caught:
        database.write("POST /x", lambda connection: None)
    assert caught.value.status == 503
    blocker.close()
    database.close()


def test_threads_share_the_ledger_and_leave_no_files_open(ledger, path):
    make_meter(ledger)

    def work(number):
        ledger.send(activities(range(number * 50, number * 50 + 50)))
        ledger.send(meter_events(range(number * 50, number * 50 + 50)))
        users(ledger)
        counted(ledger)

    for wave in range(10):
        threads = [threading.Thread(target=work, args=(wave * 5 + number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert users(ledger) == counted(ledger) == 2500
    assert len(open_files(path.parent)) <= 5 * 3
    ledger.close()
    assert open_files(path.parent) == []


def test_a_reader_sees_one_view_and_does_not_hold_up_the_writer(ledger):
    ledger.send(activities([1]))

    def work(connection):
        count = "SELECT count(*) FROM activity_identifier"
        before = connection.execute(count).fetchone()
        assert ledger.send(activities([2])) == [Delivered()]
        return before, connection.execute(count).fetchone()

    assert ledger._database.read("view", work) == ((1,), (1,))
    assert users(ledger) == 2


def test_a_bug_in_the_middle_leaves_nothing_half_done(ledger):
    ledger.send(activities([1]))

    def work(connection):
        connection.execute("DELETE FROM activity")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ledger._database.write("break", work)
    assert users(ledger) == 1
    assert ledger.send(activities([2])) == [Delivered()]


# -- processes


def _send_shuffled(path, seed):
    ledger = Ledger(path)
    numbers = list(range(2000))
    random.Random(seed).shuffle(numbers)
    for begin in range(0, len(numbers), 250):
        some = numbers[begin : begin + 250]
        for batch in (activities(some), meter_events(some)):
            while any(outcome != Delivered() for outcome in ledger.send(batch)):
                pass
    ledger.close()


def test_processes_that_send_the_same_events_count_each_once(ledger, path):
    meter = make_meter(ledger)
    processes = [SPAWN.Process(target=_send_shuffled, args=(path, seed)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert users(ledger) == counted(ledger) == 2000
    assert ledger.meter_events.pending_amount() == {meter["currency_id"]: "200"}
    assert ledger.meter_events.pending_amount(customer_id="cus_1") == {meter["currency_id"]: "200"}


def _open_at_once(path, barrier):
    barrier.wait()
    ledger = Ledger(path)
    assert ledger.send(activities([os.getpid()])) == [Delivered()]
    ledger.close()


def test_processes_may_make_the_file_at_the_same_time(ledger, path):
    barrier = SPAWN.Barrier(5)
    processes = [SPAWN.Process(target=_open_at_once, args=(path, barrier)) for _ in range(5)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 5
    assert users(ledger) == 5
    ledger.close()
    assert [file.name for file in path.parent.iterdir()] == ["ledger.db"]


SIZE = 400


def _batch(number):
    return [
        event
        for each in range(SIZE // 2)
        for event in (
            Activity(f"{number}-{each}", f"batch-{number}", f"user-{each}", "active", NOW),
            MeterEvent(f"{number}-{each}", "api.calls", f"batch-{number}", "0.1", NOW),
        )
    ]


def _send_for_ever(path, pipe):
    ledger = Ledger(path)
    number = 0
    while True:
        assert set(ledger.send(_batch(number))) == {Delivered()}
        pipe.send(number)
        number += 1


def test_a_kill_in_the_middle_leaves_whole_batches_and_sending_again_counts_once(ledger, path):
    meter = make_meter(ledger)
    dice = random.Random(0)
    for _ in range(4):
        receiving, sending = SPAWN.Pipe(duplex=False)
        process = SPAWN.Process(target=_send_for_ever, args=(path, sending))
        process.start()
        sending.close()
        delivered = -1
        for _ in range(dice.randrange(3, 12)):
            delivered = receiving.recv()
        threading.Event().wait(dice.random() * 0.01)  # to hit another place in the batch each time
        os.kill(process.pid, signal.SIGKILL)
        process.join(10)
        try:
            while True:
                delivered = receiving.recv()
        except EOFError:
            receiving.close()

        half = SIZE // 2
        for number in range(delivered + 1):
            assert users(ledger, f"batch-{number}") == half
        assert users(ledger, f"batch-{delivered + 1}") in (0, half)
        assert counted(ledger) % half == 0
        for number in range(delivered + 2):
            assert set(ledger.send(_batch(number))) == {Delivered()}
            assert users(ledger, f"batch-{number}") == half
        assert counted(ledger) == (delivered + 2) * half
        expected = f"{(delivered + 2) * half // 10}"
        assert ledger.meter_events.pending_amount() == {meter["currency_id"]: expected}
        for file in path.parent.iterdir():  # the next round begins with an empty ledger
            file.unlink()
        meter = make_meter(ledger)


# -- forks


def in_child(work):
    """The exit code of *work*, run in a forked child; 0 is true."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    for _ in range(1000):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        threading.Event().wait(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hung"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forks_in_the_middle_of_traffic_share_nothing_and_lose_nothing(ledger, path):
    make_meter(ledger)
    stop = threading.Event()
    sent = []

    def send():
        number = 0
        while not stop.is_set():
            assert set(ledger.send(activities(range(number, number + 500), "parent"))) == {Delivered()}
            number += 500
            sent.append(500)

    def read():
        while not stop.is_set():
            users(ledger)

    threads = [threading.Thread(target=send), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    try:
        for number in range(15):

            def work(number=number):
                inherited = open_files(path.parent)
                events = [
                    Activity(f"child-{number}-{each}", "child", f"{number}-{each}", "active", NOW)
                    for each in range(50)
                ]
                while any(outcome != Delivered() for outcome in ledger.send(events)):
                    pass
                return inherited == [] and users(ledger, "child") == (number + 1) * 50

            assert in_child(work) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert users(ledger, "parent") == sum(sent)
    assert users(ledger, "child") == 15 * 50


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_outlives_its_parent_with_the_ledger_intact(path):
    """The parent's end takes no lock and no log away from the child."""

    def parent():
        ledger = Ledger(path)
        ledger.send(activities(range(10)))
        if os.fork() == 0:
            threading.Event().wait(0.3)  # the parent ends meanwhile, and its locks with it
            for number in range(10, 50):
                ledger.send(activities([number]))
            ledger.close()
            Path(f"{path}.done").touch()
            os._exit(0)
        return True

    assert in_child(parent) == 0
    other = Ledger(path)
    deadline = time.monotonic() + 20
    while not Path(f"{path}.done").exists() and time.monotonic() < deadline:
        assert other.send(activities([50])) == [Delivered()]
        other.close()  # the last one out checkpoints and removes the log
    assert users(other) == 51
    other.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_call_that_outlasts_a_forks_patience_makes_the_child_refuse_the_file(path):
    database = Database(path, fork_seconds=0.1)
    inside, go_on = threading.Event(), threading.Event()

    def hold(connection):
        inside.set()
        go_on.wait(30)

    thread = threading.Thread(target=lambda: database.write("hold", hold))
    thread.start()
    inside.wait(30)

    def work():
        try:
            database.read("child", lambda connection: None)
        except errors.Unavailable as error:
            return error.status == 500 and "forked" in error.words
        return False

    assert in_child(work) == 0
    go_on.set()
    thread.join()
    assert database.read("parent", lambda connection: True)
    database.close()


def test_of_two_forks_at_once_the_first_to_be_done_lets_no_call_in(path):
    database = Database(path)
    database._before_fork()
    database._before_fork()
    read = threading.Event()
    thread = threading.Thread(target=lambda: (database.read("look", lambda _: None), read.set()))
    thread.start()
    database._after_fork_in_parent()
    assert not read.wait(0.2)
    assert open_files(path.parent) == []
    database._after_fork_in_parent()
    assert read.wait(30)
    thread.join()
    database.close()


def test_a_parked_event_does_not_undo_the_batch(ledger):
    outcomes = ledger.send([*activities([1]), *meter_events([1])])
    assert outcomes[0] == Delivered()
    assert isinstance(outcomes[1], Parked)
    assert users(ledger) == 1
