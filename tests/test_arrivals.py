"""Destinations that count by arrival: what arrives late, or in another month, is counted, kept and told."""

import itertools
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from command import Command
from programs import start
from sidecar_process import SidecarProcess
from test_courier import RecordingSpool, block
from test_metrics import sidecar
from upstream import UpstreamServer
from waiting import until

from per_agent import (
    Agent,
    DeliverySettings,
    Ledger,
    MemoryDestination,
    PaymentKit,
    Per,
    Sidecar,
    SpoolSettings,
)
from per_agent.agent.month_end import month_end
from per_agent.agent.overview import overview
from per_agent.books import Books
from per_agent.cli.status import status_view
from per_agent.courier import Condition, Courier, Note
from per_agent.courier.arrivals import LATE, Arrivals
from per_agent.courier.window import Item, Window
from per_agent.destinations import Destination, Parked, Retry
from per_agent.event import Activity, Event, MeterEvent, Progress, encode
from per_agent.log import Log
from per_agent.month import Month
from per_agent.settings import IntakeSettings
from per_agent.spool import Parking, Settlement, Spool, Store, folder, own

SOON = SpoolSettings(adopt_interval=0.2)
EARLIER = "2024-02-29T12:00:00Z"  # in a month that has ended, whenever this runs


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def on_arrival(*script, **options) -> MemoryDestination:
    return MemoryDestination(script, counts_on_arrival=True, **options)


class Bench:
    """A courier at work on a spool, with a wall clock that stands where it is put."""

    def __init__(self, data_dir: Path, destination: Destination) -> None:
        self.now = 0.0
        self.spool = Spool(
            lambda unusable: own(data_dir, [destination.name], unusable),
            None,
            Progress(lambda: None),
            intake=IntakeSettings(),
            settings=SpoolSettings(),
        )
        self.courier = Courier([destination], DeliverySettings(), lambda: None, wall=lambda: self.now)
        self.spool.start()
        self.spool.wait_opened(30)
        self.courier.start()
        self.courier.attach(self.spool)

    def deliver(self, event: Event, now: float) -> tuple[int, int]:
        """Have *event* delivered at *now*. How many late and crossed ones that makes."""
        self.now = now
        before = self.books
        self.spool.run(lambda changes: changes.append(("memory",), [encode(event)], now), 30)
        until(lambda: self.books.delivered > before.delivered)
        return self.books.late - before.late, self.books.crossed - before.crossed

    @property
    def books(self) -> Books:
        return self.spool.books.get("memory", Books())

    def stop(self) -> None:
        assert self.courier.stop(30)
        assert self.spool.stop(30)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One for all that only count, so that each costs a commit."""
    made = Bench(tmp_path_factory.mktemp("arrivals"), on_arrival())
    yield made
    made.stop()


def activity(happened_at: float) -> Activity:
    return Activity("id", "acme", "u", "active", happened_at)


# What is counted


@pytest.mark.parametrize(
    ("happened", "arrived", "late", "crossed"),
    [
        ("2026-01-15T12:00:00", "2026-01-15T12:00:00.100", 0, 0),
        ("2026-01-15T12:00:00", "2026-01-15T13:00:00", 0, 0),
        ("2026-01-15T12:00:00", "2026-01-15T13:00:00.001", 1, 0),
        ("2026-01-15T23:59:59.900", "2026-01-16T00:00:00.100", 0, 0),
        ("2026-01-31T23:59:59.999", "2026-01-31T23:59:59.999", 0, 0),
        ("2026-01-31T23:59:59.999", "2026-02-01T00:00:00", 0, 1),
        ("2026-02-01T00:00:00", "2026-02-01T00:00:00", 0, 0),
        ("2026-02-01T00:00:00", "2026-02-28T23:59:59.999", 1, 0),
        ("2026-02-28T23:59:59.999", "2026-03-01T00:00:00", 0, 1),
        ("2028-02-28T23:59:59.999", "2028-02-29T00:00:00", 0, 0),
        ("2028-02-29T23:59:59.999", "2028-03-01T00:00:00", 0, 1),
        ("2100-02-28T23:59:59.999", "2100-03-01T00:00:00", 0, 1),
        ("2026-12-31T22:00:00", "2027-01-01T00:00:00", 1, 1),
        ("2025-11-24T12:00:00", "2026-11-24T12:00:00", 1, 1),
        ("1970-01-01T00:00:00", "2026-11-24T12:00:00", 1, 1),
        ("2026-02-01T00:00:00", "2026-01-31T23:59:59.999", 0, 1),
        ("2026-11-25T12:00:00", "2026-11-24T12:00:00", 0, 0),
        ("5100-01-01T00:00:00", "2026-11-24T12:00:00", 0, 1),
    ],
)
def test_what_arrives_more_than_an_hour_after_it_happened_is_late_and_in_another_month_has_crossed(
    bench, happened, arrived, late, crossed
):
    assert bench.deliver(activity(at(happened)), at(arrived)) == (late, crossed)


def test_a_meter_event_is_judged_by_its_own_time_too(bench):
    event = MeterEvent("id", "api.calls", "c", "1", at("2026-01-31T12:00:00"))
    assert bench.deliver(event, at("2026-02-01T12:00:00")) == (1, 1)


def test_a_destination_that_uses_the_events_own_time_has_nothing_late(tmp_path):
    bench = Bench(tmp_path, MemoryDestination())
    assert bench.deliver(activity(at("2024-01-31T12:00:00")), at("2026-02-01T12:00:00")) == (0, 0)
    bench.stop()


def test_only_per_counts_by_arrival(tmp_path):
    made = [
        Per("t"),
        PaymentKit("https://pay.example", "k"),
        Ledger(tmp_path / "l.db"),
        Sidecar(f"unix:{tmp_path}/s"),
        MemoryDestination(),
    ]
    assert [each.counts_on_arrival for each in made] == [True, False, False, False, False]


def test_what_is_not_delivered_yet_or_never_is_not_late(tmp_path):
    destination = on_arrival(Parked("meter:a", "asleep"), probes=itertools.repeat(False))
    with Agent(tmp_path, [destination]) as agent:
        agent.add_activity("acme", "u", "active", at=EARLIER)
        until(lambda: agent.statistics().destinations["memory"].parked == 1)
        seen = agent.statistics().destinations["memory"]
        assert (seen.late_total, seen.period_crossed_total) == (0, 0)


def test_an_event_that_needs_several_attempts_is_counted_once(tmp_path):
    with Agent(
        tmp_path, [on_arrival(*[Retry("down")] * 3)], delivery=DeliverySettings(backoff_initial=0.01)
    ) as agent:
        agent.add_activity("acme", "u", "active", at=EARLIER)
        assert agent.flush(30)
        seen = agent.statistics().destinations["memory"]
        assert (seen.late_total, seen.period_crossed_total) == (1, 1)


def test_what_was_settled_before_is_not_late_once_more(tmp_path):
    store = Store(tmp_path)
    with store.transaction() as changes:
        (made,) = changes.append(("per",), [encode(activity(n)) for n in range(4)], 1.0)
    for delivered, late, crossed in (([0, 1], [0, 1], [1]), ([0, 1, 2], [0, 1, 2], [1, 2]), ([3], [], [])):
        with store.transaction() as changes:
            changes.settle(made, Settlement(delivered=delivered, late=late, crossed=crossed))
    assert store.books["per"] == Books(4, 4, late=3, crossed=2)
    store.close()
    again = Store(tmp_path)
    assert again.books["per"] == Books(4, 4, late=3, crossed=2)
    again.close()


def test_books_of_before_there_were_such_counts_are_read_and_those_of_now_by_the_version_before():
    assert msgspec.msgpack.decode(msgspec.msgpack.encode([6, 1, 2, 0, 3, 1]), type=Books) == Books(
        6, 1, 2, 0, 3, 1
    )

    class Before(msgspec.Struct, array_like=True):
        accepted: int = 0
        delivered: int = 0
        dead: int = 0
        dropped: int = 0
        pending: int = 0
        purged: int = 0

    written = msgspec.msgpack.encode(Books(6, 1, 2, 0, 3, 1, 5, 4))
    assert msgspec.msgpack.decode(written, type=Before) == Before(6, 1, 2, 0, 3, 1)


CRASHING = """
agent = Agent(data_dir, [Per("token", url=sys.argv[2])], spool=SpoolSettings(adopt_interval=60))
agent.start(wait=True)
print("ready", flush=True)
sys.stdin.readline()
for n in range(5):
    agent.add_activity("acme", f"u-{os.getpid()}-{n}", "active", at="2024-02-29T12:00:00Z")
agent.add_activity("acme", f"u-{os.getpid()}", "active")
assert agent.flush(30)
print("delivered", flush=True)
sys.stdin.readline()
os._exit(9)
"""


def test_counts_outlive_crashes_and_the_adoption_of_spools(tmp_path, upstream: UpstreamServer):
    programs = [start(CRASHING, tmp_path, upstream.url) for _ in range(3)]
    for line in ("ready\n", "delivered\n"):
        for program in programs:
            assert program.stdout.readline() == line
            program.stdin.write("go\n")
            program.stdin.flush()
    for program in programs:
        assert program.wait(30) == 9
        program.communicate()
    document = overview(tmp_path, ["per"]).as_dict(time.time())
    assert len(document["spools"]) == 3
    told = document["destinations"]["per"]
    assert (told["late_total"], told["period_crossed_total"], told["live"]) == (15, 15, False)

    with Agent(tmp_path, [Per("token", url=upstream.url)], spool=SOON) as agent:
        agent.start(wait=True)
        until(lambda: agent.statistics().complete and not agent.statistics().adopted)
        agent.add_activity("acme", "u", "active", at=EARLIER)
        assert agent.flush(30)
        until(lambda: len(list((tmp_path / "spools").iterdir())) == 1)
        seen = agent.statistics().destinations["per"]
        assert (seen.late_total, seen.period_crossed_total) == (16, 16)
        said = agent.status()["destinations"]["per"]
        assert (said["late_total"], said["period_crossed_total"]) == (16, 16)
        assert agent.books()["per"].crossed == 16
    assert len(upstream.score().activities) == 19


# What is told


def test_status_and_metrics_say_the_same_and_nothing_of_destinations_that_use_the_events_own_time(tmp_path):
    with sidecar(Agent(tmp_path, [Ledger(), on_arrival(name="arriving")])) as running:
        for n in range(7):
            running.agent.add_activity("acme", f"u-{n}", "active", at=EARLIER if n < 3 else None)
        hours = time.time() - 2 * LATE
        running.agent.add_activity("acme", "u", "active", at=hours)
        crossed = 3 + (Month.of(hours) != Month.of(time.time()))
        assert running.agent.flush(30)
        until(lambda: running.agent.statistics().complete)
        seen = running.scrape()
        assert seen("events_late_total", destination="arriving") == 4
        assert seen("events_period_crossed_total", destination="arriving") == crossed
        assert seen("events_late_total", destination="ledger") is None
        assert seen("events_period_crossed_total", destination="ledger") is None
        told = running.document("/v1/status")["destinations"]
        assert (told["arriving"]["late_total"], told["arriving"]["period_crossed_total"]) == (4, crossed)
        assert told["arriving"]["month_end"]["missed"] == told["arriving"]["month_end"]["pending"] == 0
        assert [told["ledger"][each] for each in ("late_total", "period_crossed_total", "month_end")] == [
            None
        ] * 3
        said = running.agent.status()["destinations"]
        assert (said["arriving"]["late_total"], said["arriving"]["period_crossed_total"]) == (4, crossed)
        assert (said["ledger"]["late_total"], said["ledger"]["period_crossed_total"]) == (None, None)
        assert "late" not in running.document("/v1/books")["destinations"]["arriving"]


def test_a_sidecar_goes_on_to_count_after_a_restart(tmp_path, upstream: UpstreamServer):
    destination = f'[destinations.per]\ntype = "per"\nactivity_token = "t0ken"\nurl = "{upstream.url}"\n'
    event = {"billing_id": "acme", "user_id": "u-1", "activity_type_id": "active", "at": EARLIER}
    process = SidecarProcess(tmp_path, destination)
    for round_ in (1, 2):
        with process as running, running.client() as client:
            assert client.post("/v1/events", json=[event, {**event, "at": time.time()}]).status_code == 202

            def told(client=client, round_=round_) -> bool:
                lines = client.get("/metrics").text.splitlines()
                status = client.get("/v1/status").json()["destinations"]["per"]
                return (
                    f'per_agent_events_period_crossed_total{{destination="per"}} {round_}.0' in lines
                    and f'per_agent_events_late_total{{destination="per"}} {round_}.0' in lines
                    and (status["late_total"], status["period_crossed_total"]) == (round_, round_)
                )

            until(told)
            running.drained("per")


def lines_of(caplog) -> list[int]:
    """How many events each line tells of."""
    return [each.facts["events"] for each in caplog.records if "in another month" in each.getMessage()]


def test_what_crossed_is_told_in_a_line_with_their_number_once_in_a_while(caplog):
    clock = [0.0]
    arrivals = Arrivals(Log(destination="per"), lambda: clock[0])
    window = Window(RecordingSpool(), "per", 3, lambda *_: None, lambda _: None)  # type: ignore[arg-type]
    (loaded,) = window.take(0, [block(1)], 1.0)

    def crosses(count: int) -> None:
        for _ in range(count):
            arrivals.note(Item(loaded, 0, activity(0.0)), at("2026-02-01T00:00:00"))

    assert arrivals.tell_if_due() is None
    arrivals.note(Item(loaded, 0, activity(at("2026-02-01T00:00:00"))), at("2026-02-28T00:00:00"))
    assert arrivals.tell_if_due() is None, "late alone is no line: the outage had its own"
    crosses(500)
    first = arrivals.tell_if_due()
    assert 0 < first <= 60
    clock[0] += first / 2
    crosses(500)
    assert lines_of(caplog) == []
    assert arrivals.tell_if_due() == pytest.approx(first / 2)
    clock[0] += first
    assert arrivals.tell_if_due() is None
    assert lines_of(caplog) == [1000]
    crosses(1)
    clock[0] += first
    again = arrivals.tell_if_due()
    assert again > 60, "however long it goes on, it is not said again and again"
    crosses(1)
    clock[0] += again
    assert arrivals.tell_if_due() is None
    assert lines_of(caplog) == [1000, 2]
    crosses(3)
    arrivals.tell()
    arrivals.tell()
    assert lines_of(caplog) == [1000, 2, 3]


def test_a_courier_tells_when_it_is_time_and_what_is_left_at_its_end(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "per_agent")
    with Agent(tmp_path, [on_arrival()]) as agent:
        for n in range(50):
            agent.add_activity("acme-secret", f"u-secret-{n}", "active", at=EARLIER)
        assert agent.flush(30)
    assert lines_of(caplog) == [50]
    assert "destination=memory" in caplog.text
    assert "secret" not in caplog.text

    caplog.clear()
    clock = [0.0]
    destination = on_arrival()
    courier = Courier(
        [destination], DeliverySettings(), lambda: None, clock=lambda: clock[0], wall=lambda: 1e9
    )
    for route in courier._routes:
        (loaded,) = Window(RecordingSpool(), "memory", 3, lambda *_: None, lambda _: None).take(
            0, [block(1)], 1.0
        )  # type: ignore[arg-type]
        route._arrivals.note(Item(loaded, 0, activity(0.0)), 1e9)
    wait = courier.step()
    assert wait is not None, "it wakes by itself to say it"
    clock[0] += wait
    courier.step()
    assert lines_of(caplog) == [1]


# The month's end


@pytest.mark.parametrize(
    ("now", "month", "pending", "missed", "left"),
    [
        ("2026-02-01T00:00:00", "2026-02", 6, 5, 28 * 86_400.0),
        ("2026-01-31T23:59:59.999", "2026-01", 11, 0, 0.001),
        ("2026-02-28T23:59:59.999", "2026-02", 6, 5, 0.001),
        ("2026-03-01T00:00:00", "2026-03", 2, 9, 31 * 86_400.0),
        ("2025-11-24T22:00:00", "2025-11", 11, 0, 6 * 86_400.0 + 7200),
        ("2028-02-01T00:00:00", "2028-02", 2, 9, 29 * 86_400.0),
    ],
)
def test_what_was_recorded_in_a_month_that_ended_has_missed_it_and_the_rest_has_until_the_end(
    now, month, pending, missed, left
):
    said = month_end({Month(2026, 1): 5, Month(2026, 2): 4}, 2, at(now))
    assert said == {
        "month": month,
        "ends_at": said["ends_at"],
        "seconds_left": left,
        "pending": pending,
        "missed": missed,
    }
    assert at(said["ends_at"].removesuffix("Z")) == Month.of(at(now)).end


@contextmanager
def left_behind(data_dir: Path, note: Condition | None = None) -> Iterator[Store]:
    """A spool that nobody holds, to be filled."""
    folder.prepare(data_dir)
    place = folder.create(data_dir)
    place.release()
    store = Store(place.folder)
    yield store
    if note is not None:
        with store.transaction() as changes:
            changes.note("per", msgspec.json.encode(note))
    store.close()


def fill(store: Store, *blocks: tuple[str, int, int]) -> None:
    """Blocks that were made then, of so many events, of which so many were delivered."""
    for made_at, count, delivered in blocks:
        with store.transaction() as changes:
            (made,) = changes.append(("per",), [encode(activity(1.0))] * count, at(made_at))
        with store.transaction() as changes:
            changes.settle(made, Settlement(delivered=range(delivered)))


def test_pending_events_are_told_by_the_month_in_which_their_blocks_were_made(tmp_path):
    with left_behind(tmp_path, Note(counts_on_arrival=True)) as store:
        fill(
            store,
            ("2026-01-31T23:59:59.999", 10, 3),
            ("2026-02-01T00:00:00", 20, 20),
            ("2026-02-01T00:00:00", 30, 1),
            ("2026-03-01T00:00:00", 5, 0),
        )
    with left_behind(tmp_path, Note(counts_on_arrival=True)) as store:
        fill(store, ("2025-02-10T00:00:00", 100, 0), ("2026-02-10T00:00:00", 200, 0))
        (parked,) = [made for made in store.head("per", None, 10)[0] if made.count == 100]
        with store.transaction() as changes:
            changes.settle(parked, Settlement(parked=[(Parking("meter:a", "asleep", 1.0), range(40))]))
    assert len(list((tmp_path / "spools").iterdir())) == 2
    seen = overview(tmp_path, ["per"], {"per": 1000})
    assert seen.problems == []
    for now, missed, pending in (
        ("2026-02-28T23:59:59.999", 107, 1234),
        ("2026-03-01T00:00:00", 336, 1005),
        ("2024-01-01T00:00:00", 0, 1341),
    ):
        document = seen.as_dict(at(now))["destinations"]["per"]
        assert (document["month_end"]["missed"], document["month_end"]["pending"]) == (missed, pending)
        assert document["books"]["pending"] == missed + pending


def test_a_head_that_is_damaged_does_not_keep_status_from_answering(tmp_path):
    with left_behind(tmp_path, Note(counts_on_arrival=True)) as store:
        fill(store, ("2026-02-01T00:00:00", 3, 0))
        with store.transaction() as changes:
            (made,) = store.head("per", None, 1)[0]
            key = f"l/per/b/{made.id}"
            packed = bytearray(changes._disk.get(key))
            packed[9:17] = b"\xff" * 8  # made half a billion years from now
            changes._disk.set(key, bytes(packed))
    document = overview(tmp_path, ["per"]).as_dict(at("2026-02-10T00:00:00"))["destinations"]["per"]
    assert (document["month_end"]["missed"], document["month_end"]["pending"]) == (0, 3)


@pytest.mark.parametrize(
    "note", [None, Condition(), Note()], ids=["none", "of an earlier version", "of its own time"]
)
def test_a_lane_of_which_nobody_said_that_it_counts_by_arrival_has_no_months_end(tmp_path, note):
    with left_behind(tmp_path, note) as store:
        fill(store, ("2026-02-01T00:00:00", 3, 0))
    document = overview(tmp_path, ["per"]).as_dict(at("2026-02-10T00:00:00"))["destinations"]["per"]
    assert [document[each] for each in ("month_end", "late_total", "period_crossed_total")] == [None] * 3
    assert document["state"] == (None if note is None else "open")


def test_the_command_says_what_missed_its_month_and_how_long_the_rest_has(tmp_path):
    per_agent = Command(tmp_path)
    with left_behind(per_agent.data_dir, Note(counts_on_arrival=True)) as store:
        fill(store, ("2024-02-29T12:00:00", 4, 0), (datetime.now(UTC).replace(tzinfo=None).isoformat(), 3, 1))
        with store.transaction() as changes:
            (made,) = changes.append(("per",), [encode(activity(1.0))] * 1200, 1.0)
        with store.transaction() as changes:
            changes.settle(made, Settlement(delivered=range(1200), late=range(1200), crossed=range(1100)))
    as_json, table = per_agent.many(["status", "--json"], ["status"])
    told = as_json.json["destinations"]["per"]
    ending = told["month_end"]
    assert (told["late_total"], told["period_crossed_total"]) == (1200, 1100)
    assert (ending["missed"], ending["pending"]) == (4, 2)
    assert 0 < ending["seconds_left"] <= 31 * 86_400
    month, ends_at = ending["month"], ending["ends_at"]
    assert ends_at.endswith("-01T00:00:00.000Z")
    lines = table.out.splitlines()
    assert (
        f"per: 4 pending events recorded before {month} missed the end of their month, and will be counted when"
        " they arrive" in lines
    )
    (line,) = [
        line for line in lines if line.startswith(f"per: 2 pending events of {month} must arrive within ")
    ]
    assert line.endswith(f" (by {ends_at[:10]} 00:00:00Z)")
    assert "per: 1,200 events arrived more than an hour after happening, 1,100 in another month" in lines


def test_the_command_shows_the_status_of_a_sidecar_that_says_nothing_of_months(tmp_path):
    with left_behind(tmp_path, Note(counts_on_arrival=True)) as store:
        fill(store, ("2026-02-01T00:00:00", 3, 0))
    document = overview(tmp_path, ["per"]).as_dict(time.time())
    new = [each for each in status_view(document).renderables if "month" in str(each)]
    for each in ("month_end", "late_total", "period_crossed_total"):
        del document["destinations"]["per"][each]
    assert new
    assert [each for each in status_view(document).renderables if "month" in str(each)] == []


def test_an_event_that_was_given_an_earlier_time_counts_with_those_recorded_beside_it_until_it_arrives(
    tmp_path, upstream: UpstreamServer
):
    upstream.stop()
    quick = DeliverySettings(backoff_initial=0.05, backoff_max=0.1)

    def told() -> dict[str, Any]:
        return overview(tmp_path, ["per"]).as_dict(time.time())["destinations"]["per"]

    with Agent(tmp_path, [Per("token", url=upstream.url)], delivery=quick) as agent:
        agent.add_activity("acme", "u", "active", at=EARLIER).stored(30)
        until(lambda: told()["state"] == "retrying")
        assert (told()["month_end"]["missed"], told()["month_end"]["pending"]) == (0, 1)
        upstream.start()
        assert agent.flush(30)
        assert (told()["period_crossed_total"], told()["month_end"]["pending"]) == (1, 0)
