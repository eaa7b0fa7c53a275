"""Death at each step of durability: what `add_*` returned for is delivered, once, and the books balance."""

import contextlib
import itertools
import json
import os
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command import Command
from mortal import DELIVERY, INTAKE, SPOOL, activate, standing
from upstream import UpstreamServer
from waiting import until

from per_agent import Agent, Ledger, PaymentKit, Per
from per_agent.errors import UpstreamError
from per_agent.event import decode
from per_agent.failpoint import POINTS
from per_agent.journal import layout
from per_agent.settings import AgentSettings, Settings
from per_agent.sidecar.token import token_of
from per_agent.spool import ballast, salvage, snapshots
from per_agent.spool.disk import FILE

MORTAL = Path(__file__).with_name("mortal.py")
KILLED = -9
NO_HEAD = bytes(100)
FIRST_TWO = (1, 2)
SOME = (1, 2, 7)
NOT_EACH_DAY = {
    "rows salvaged",
    "salvage reported",
    "report moved",
    "salvage removed",
}  # their neighbours are


@dataclass(frozen=True)
class Scenario:
    """How a process comes to a point: the life that it leads, the estate that it finds, at which passes it dies."""

    life: str = "plain"
    estate: str = "nothing"
    at: tuple[int, ...] = (1,)


SCENARIOS = {
    "folders made": Scenario(),
    "folder synced": Scenario(at=FIRST_TWO),
    "spool made": Scenario(),
    "spool locked": Scenario(),
    "database made": Scenario(),
    "database opened": Scenario(),
    "ledger file made": Scenario(),
    "ledger linked": Scenario(),
    "ledger tables written": Scenario(),
    "ledger tables committed": Scenario(),
    "token written": Scenario("token"),
    "token linked": Scenario("token"),
    "journal file made": Scenario(),
    "journal sized": Scenario(),
    "journal made": Scenario(),
    "route half written": Scenario("upstream", at=FIRST_TWO),
    "route written": Scenario("upstream", at=FIRST_TWO),
    "slot written": Scenario(at=SOME),
    "part written": Scenario(at=SOME),
    "journal moved": Scenario(),
    "block written": Scenario(at=SOME),
    "before commit": Scenario(at=SOME),
    "after commit": Scenario(at=SOME),
    "commit noted": Scenario(at=SOME),
    "committed alone": Scenario("heir", "a later version's journal"),
    "slots released": Scenario(at=SOME),
    "journal replaced": Scenario("robbed", at=FIRST_TWO),
    "journal given up": Scenario(),
    "journal taken": Scenario(estate="a loose journal"),
    "journal recovered": Scenario("heir", "three spools", at=SOME[:2]),
    "journal removed": Scenario("heir", "three spools", at=SOME[:2]),
    "lane adopted": Scenario("heir", "three spools", at=(1, 2, 3)),
    "books absorbed": Scenario("heir", "three spools", at=FIRST_TWO),
    "spool renamed": Scenario("heir", "three spools", at=FIRST_TWO),
    "spool removed": Scenario("heir", "three spools", at=FIRST_TWO),
    "spool swept": Scenario(estate="a spool half removed"),
    "request sent": Scenario("upstream", at=SOME),
    "answer read": Scenario("upstream", at=SOME),
    "before settle": Scenario("upstream", at=SOME),
    "after settle": Scenario("upstream", at=SOME),
    "dead letter written": Scenario("upstream", at=SOME),
    "event parked": Scenario("upstream", at=SOME),
    "events unparked": Scenario("upstream", at=SOME),
    "ledger written": Scenario(at=SOME),
    "ledger committed": Scenario(at=SOME),
    "file half written": Scenario("requeue", "dead letters", at=FIRST_TWO),
    "letters asked": Scenario("requeue", "dead letters"),
    "letters taken": Scenario("requeue", "dead letters"),
    "letters requeued": Scenario("requeue", "dead letters"),
    "letters purged": Scenario("purge", "dead letters"),
    "letters answered": Scenario("purge", "dead letters"),
    "answer fetched": Scenario("purge", "dead letters"),
    "rows salvaged": Scenario("heir", "damaged spools", at=FIRST_TWO),
    "salvage balanced": Scenario("heir", "damaged spools", at=FIRST_TWO),
    "salvage reported": Scenario("heir", "damaged spools", at=FIRST_TWO),
    "salvage built": Scenario("heir", "damaged spools", at=FIRST_TWO),
    "damaged file moved": Scenario("heir", "damaged spools", at=FIRST_TWO),
    "salvage moved": Scenario("heir", "damaged spools", at=FIRST_TWO),
    "report moved": Scenario("heir", "damaged spools", at=FIRST_TWO),
    "salvage removed": Scenario("heir", "damaged spools", at=FIRST_TWO),
    "checkpoint": Scenario("full", at=FIRST_TWO),
    "ballast allocated": Scenario(),
    "ballast cut": Scenario(),
}


HEIR = Scenario("heir", "three spools", at=(1, 2))
BESIDES = {
    # the same steps, of a process that takes over what others left
    "block written": HEIR,
    "before commit": HEIR,
    "after commit": HEIR,
    "before settle": HEIR,
    "ballast allocated": HEIR,
    "ledger committed": HEIR,
}


@dataclass
class World:
    """A data folder, what was recorded in it, and the upstream, if any."""

    home: Path
    url: str = ""
    lives: int = 0
    damaged: tuple[tuple[str, bytes], ...] = ()  # by their ids the databases that are to be set aside

    @property
    def data_dir(self) -> Path:
        return self.home / "data"

    @property
    def notes(self) -> Path:
        return self.home / "notes"

    def live(self, life: str, die_at: str | None = None) -> int:
        """Have a process live *life*, to its end or to that point. Returns how it ended."""
        self.lives += 1
        return _ended(
            {
                "life": life,
                "die_at": die_at,
                "data_dir": str(self.data_dir),
                "notes": str(self.notes),
                "prefix": f"k{self.lives}-{os.urandom(2).hex()}",
                "url": self.url,
            }
        )

    def noted(self, mark: str) -> set[str]:
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return {line[1:] for line in lines if line[0] == mark}

    @property
    def returned(self) -> set[str]:
        """The events whose call returned."""
        return self.noted("=")

    @property
    def cut_off(self) -> set[str]:
        """The events whose call neither returned nor raised: they may be there or not."""
        return self.noted("+") - self.noted("=") - self.noted("-")


_own = threading.local()
_asking = threading.Lock()  # one command at a time
_forkers: list[subprocess.Popen[bytes]] = []


def _ended(asked: dict[str, Any]) -> int:
    """How a process that is forked for what is *asked* ends. One such program serves each thread."""
    if not hasattr(_own, "forker"):
        command = [sys.executable, "-W", "error", str(MORTAL)]
        _own.forker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        _forkers.append(_own.forker)
    process = _own.forker
    process.stdin.write(json.dumps(asked).encode() + b"\n")
    return int(process.stdout.readline())


@pytest.fixture(scope="module", autouse=True)
def _end_of_forkers() -> Iterator[None]:
    yield
    while _forkers:
        _forkers.pop().communicate(timeout=60)
    vars(_own).clear()


@pytest.fixture(scope="module")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, World], None]:
    """Puts an estate into a world: what processes left that died before."""
    root = tmp_path_factory.mktemp("estates")
    made: dict[str, World] = {}

    def put(estate: str, world: World) -> None:
        if estate not in made:
            made[estate] = World(root / estate.replace(" ", "-").replace("'", ""), world.url)
            made[estate].home.mkdir()
            ESTATES[estate](made[estate])
        shutil.copytree(made[estate].home, world.home, dirs_exist_ok=True)
        world.lives = 10
        world.damaged = made[estate].damaged

    return put


def _three_spools(world: World) -> None:
    """Three spools with events and journals, a journal without a spool, and a spool that is half removed."""
    assert world.live("abandoned") == KILLED
    spools = world.data_dir / "spools"
    aside = spools.rename(world.data_dir / "aside")
    _a_loose_journal(world)
    aside.rename(spools)
    assert len(list(world.data_dir.rglob("*.journal"))) == 4
    _half_removed(world)


def _a_loose_journal(world: World) -> None:
    """A journal that never came into a spool: where spools lie, there is a file."""
    world.data_dir.mkdir(exist_ok=True)
    (world.data_dir / "spools").touch()
    assert world.live("loose") == KILLED
    (world.data_dir / "spools").unlink()


def _half_removed(world: World) -> None:
    going = world.data_dir / "spools" / "0000-dead.going"
    going.mkdir(parents=True)
    (going / "cache.db").write_bytes(b"what is left of it")


def _a_later_versions_journal(world: World) -> None:
    _three_spools(world)
    journal = next((world.data_dir / "spools").rglob("*.journal"))
    _set_format(journal, layout.FORMAT + 1)


def _set_format(journal: Path, number: int) -> None:
    """Have *journal* say that it is of another format."""
    content = bytearray(journal.read_bytes())
    struct.pack_into("<H", content, 4, number)
    struct.pack_into("<I", content, 20, zlib.crc32(content[:20]))
    journal.write_bytes(content)


def _damaged_spools(world: World) -> None:
    """Three spools: one has a database without its head, one nothing but its log."""
    assert world.live("abandoned") == KILLED
    headless, emptied, _ = sorted((world.data_dir / "spools").iterdir())
    with closing(sqlite3.connect(headless / FILE)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = (headless / FILE).read_bytes()
    (headless / FILE).write_bytes(NO_HEAD + content[len(NO_HEAD) :])
    os.truncate(emptied / FILE, 0)
    world.damaged = tuple((spool.name, (spool / FILE).read_bytes()) for spool in (headless, emptied))


def _dead_letters(world: World) -> None:
    assert world.live("upstream") == 0


ESTATES: dict[str, Callable[[World], None]] = {
    "nothing": lambda _: None,
    "a loose journal": _a_loose_journal,
    "three spools": _three_spools,
    "a spool half removed": _half_removed,
    "a later version's journal": _a_later_versions_journal,
    "damaged spools": _damaged_spools,
    "dead letters": _dead_letters,
}


# What must be true


def assert_books_balance(world: World) -> None:
    """Right after a death, before anybody cleaned up. What is still damaged is told."""
    with _asking:
        asked = Command(world.home)("books", "--json")
    problems = asked.json["problems"]
    assert asked.code == (1 if problems else 0), asked.out + asked.err
    assert len(problems) <= len(world.damaged), problems
    assert all("is damaged, and is set aside by the next agent" in problem for problem in problems), problems
    with closing_agent(Agent(world.data_dir)) as agent:
        assert all(books.balanced for books in agent.books().values())


@contextlib.contextmanager
def closing_agent(agent: Agent) -> Iterator[Agent]:
    try:
        yield agent
    finally:
        assert agent.close(60)


def assert_nothing_left(world: World) -> None:
    """One spool is kept, and nothing in it but its lock, its database and its ballast."""
    assert not list(world.data_dir.rglob("*.journal*"))
    (spool,) = standing(world.data_dir)
    kept = {path.name for path in spool.iterdir()} - {"cache.db", "cache.db-wal", "cache.db-shm", "requests"}
    assert kept == {"owner.lock", ballast.FILE}
    assert not list(spool.glob("requests/*.ask"))
    aside = {report.spool: report for report in salvage.reports(world.data_dir)}
    assert set(aside) == {spool for spool, _ in world.damaged}
    for spool_id, content in world.damaged:
        assert aside[spool_id].lost == {"ledger": 0}
        assert (Path(aside[spool_id].aside) / FILE).read_bytes() == content, "as it was found"


def in_the_ledger(world: World) -> list[str]:
    """The names of all that is counted in the ledger, each as often as it is."""
    with closing(sqlite3.connect(world.data_dir / "ledger.db")) as database:
        users = [user for (user,) in database.execute("SELECT user_id FROM member")]
        events = [
            name if isinstance(name, str) else name.decode()
            for (name,) in database.execute("SELECT identifier FROM meter_event")
        ]
    return users + events


def drain_to_the_ledger(world: World) -> None:
    """Another process takes over: what the calls returned for is counted, once."""
    ledger = Ledger()
    with closing_agent(
        Agent(world.data_dir, [ledger], intake=INTAKE, spool=SPOOL, delivery=DELIVERY)
    ) as agent:
        meters = {name.split(":")[1] for name in world.noted("+")} - {"seat"} | {"calls"}
        for meter in meters:
            with contextlib.suppress(UpstreamError):  # it is there
                agent.meters.create(name=meter, event_name=meter, unit="calls")
        agent.start(wait=True)
        assert agent.flush(60)
        until(lambda: len(standing(world.data_dir)) == 1)
        books = agent.books()["ledger"]
        totals = ledger.totals()
    counted = in_the_ledger(world)
    assert sum(totals) == len(counted) == len(set(counted)), "each is counted once"
    assert world.returned - set(counted) == set(), "nothing is lost"
    assert set(counted) - world.returned <= world.cut_off, "nothing is invented"
    assert books.balanced
    assert (books.pending, books.dead, books.dropped) == (0, 0, 0)
    assert books.accepted == books.delivered == len(counted), "each is in the books once"
    assert_nothing_left(world)


def drain_to_the_upstream(world: World, upstream: UpstreamServer) -> None:
    """As `drain_to_the_ledger`, with events that are refused, and some that wait for a meter."""
    destinations = [Per("token", url=world.url), PaymentKit(world.url, "key")]
    upstream.settings(meters={"late": "inactive"})
    before = set(upstream.score().identifiers)
    with closing_agent(
        Agent(world.data_dir, destinations, intake=INTAKE, spool=SPOOL, delivery=DELIVERY)
    ) as agent:
        agent.start(wait=True)

        def only_parked() -> bool:
            each = agent.statistics().destinations
            return (
                each["per"].books.pending == 0
                and each["payment_kit"].books.pending == each["payment_kit"].parked
            )

        # What is in the journals and the spool is known once the first commit is done.
        until(lambda: agent._life.engine.spool.run(lambda _: True))
        until(only_parked)
        late = {name for name in world.returned if ":late:" in name} - before
        maybe = {name for name in world.cut_off if ":late:" in name}
        parked = sum(lane.parked for each in snapshots(world.data_dir) for lane in each.lanes.values())
        assert len(late) <= parked <= len(late | maybe), "each is parked once"
        activate(world.url)
        assert agent.flush(60)
        books = agent.books()
        buried = [decode(letter.letter.event).id for letter in agent.dead_letters]
    score = upstream.score()
    assert len(score.identifiers) == len(set(score.identifiers))
    assert len(buried) == len(set(buried)), "each letter lies there once"
    done = set(score.users) | set(score.identifiers) | set(buried)
    assert not set(buried) & set(score.identifiers)
    assert world.returned - done == set(), "nothing is lost"
    assert done - world.returned <= world.cut_off, "nothing is invented"
    assert books["per"].accepted == books["per"].delivered == len(set(score.users))
    kit = books["payment_kit"]
    assert (kit.accepted, kit.dead, kit.pending) == (len(score.identifiers) + len(buried), len(buried), 0)
    assert all(each.balanced for each in books.values())
    assert_nothing_left(world)


def ask_again(world: World, upstream: UpstreamServer, life: str) -> None:
    """What was asked for the dead letters is asked again, of nobody and of all that is left: it is done once."""
    buried = {name for name in world.returned if ":poison:" in name}
    with closing_agent(Agent(world.data_dir, [PaymentKit(world.url, "key")], delivery=DELIVERY)) as agent:
        getattr(agent.dead_letters, life)(list(agent.dead_letters))  # the spool is held by nobody
        assert list(agent.dead_letters) == []
        agent.start(wait=True)
        assert agent.flush(60)
        until(lambda: not list(world.data_dir.rglob("*.ask")))
        books = agent.books()["payment_kit"]
    dead, delivered = (len(buried), set()) if life == "purge" else (0, buried)
    assert set(upstream.score().identifiers) == delivered
    assert upstream.score().duplicates == 0
    assert (books.dead, books.purged, books.pending, books.balanced) == (dead, dead, 0, True)
    assert_nothing_left(world)


def keep_a_token(world: World) -> None:
    settings = Settings(agent=AgentSettings(data_dir=world.data_dir))
    kept = token_of(settings)
    assert len(kept) == 43
    assert token_of(settings) == kept == (world.data_dir / "sidecar.token").read_text().strip()
    assert {path.stat().st_mode & 0o77 for path in world.data_dir.iterdir()} == {0}


def go_on(world: World, upstream: UpstreamServer, how: Scenario) -> None:
    """After the deaths: whatever is left undone is done, and all is as it must be."""
    match how.life:
        case "token":
            keep_a_token(world)
        case "requeue" | "purge":
            ask_again(world, upstream, how.life)
        case "upstream":
            drain_to_the_upstream(world, upstream)
        case _:
            if how.estate == "a later version's journal":
                for journal in world.data_dir.rglob("*.journal"):
                    _set_format(journal, layout.FORMAT)  # the version that can read it is back
            drain_to_the_ledger(world)


def prepared(
    tmp_path: Path, upstream: UpstreamServer, legacy: Callable[[str, World], None], how: Scenario
) -> World:
    """A world with the estate that *how* begins with, and an upstream that has its rules."""
    world = World(tmp_path, upstream.url)
    rules = [
        {
            "path": "*/meter-events",
            "method": "POST",
            "events": ["poison"],
            "status": 400,
            "body": {"error": '"payload.value" must be a number'},
        }
    ]
    upstream.control(rules=rules, settings={"meters": {"late": "inactive"}})
    legacy(how.estate, world)
    if how.estate == "dead letters":
        upstream.reset()  # they are taken from now on
    return world


def _single(point: str, nth: int, how: Scenario) -> Any:
    # Each day the first and the last; of an heir, which waits for looks that come every second, the first.
    rest = how.at[1:] if how.life == "heir" else how.at[1:-1]
    marks = [pytest.mark.slow] if nth in rest or point in NOT_EACH_DAY else []
    return pytest.param(point, nth, how, id=f"{how.life}-{point}:{nth}", marks=marks)


SINGLE = [
    _single(point, nth, how)
    for scenarios in (SCENARIOS, BESIDES)
    for point, how in sorted(scenarios.items())
    for nth in how.at
]


@pytest.mark.parametrize(("point", "nth", "how"), SINGLE)
def test_a_death_at_any_step_loses_nothing_and_doubles_nothing(tmp_path, upstream, legacy, point, nth, how):
    world = prepared(tmp_path, upstream, legacy, how)
    assert world.live(how.life, f"{point}:{nth}") == KILLED, "it came to that step, and died there"
    assert_books_balance(world)
    go_on(world, upstream, how)


def test_every_step_has_a_scenario():
    assert set(SCENARIOS) == set(POINTS)


def test_a_process_that_dies_while_its_database_is_made_stands_in_nobodys_way(tmp_path, upstream, legacy):
    world = prepared(tmp_path, upstream, legacy, Scenario(estate="three spools"))
    # What SQLite leaves in the moments before the write-ahead log: a rollback journal that only a writer may play
    # back. The smallest page cache has the transaction written to the file before it is committed.
    half_made = world.data_dir / "spools" / "00000000000001-half"
    half_made.mkdir(mode=0o700)
    (half_made / "owner.lock").touch()
    with closing(sqlite3.connect(tmp_path / "cache.db", isolation_level=None)) as database:
        database.execute("PRAGMA cache_size = 1")
        database.execute("BEGIN")
        database.execute("CREATE TABLE t (x)")
        database.executemany("INSERT INTO t VALUES (?)", [(bytes(4000),)] * 50)
        for name in ("cache.db", "cache.db-journal"):
            shutil.copy(tmp_path / name, half_made / name)
    assert_books_balance(world)
    drain_to_the_ledger(world)


# Deaths one after the other

LEDGER = (
    "spool locked", "database opened", "journal file made", "journal sized", "journal made", "route half written",
    "route written", "slot written", "part written", "journal moved", "block written", "before commit",
    "after commit", "slots released", "journal given up", "journal taken", "journal recovered", "journal removed",
    "lane adopted", "books absorbed", "spool renamed", "spool removed", "spool swept", "before settle",
    "after settle", "ledger written", "ledger committed",
)  # fmt: skip
UPSTREAM = ("slot written", "block written", "before commit", "after commit", "request sent", "answer read",
            "before settle", "after settle", "dead letter written", "event parked", "events unparked")  # fmt: skip
LETTERS = (
    "file half written",
    "letters asked",
    "letters taken",
    "letters requeued",
    "letters answered",
    "before commit",
)
AT_ONCE = 4  # worlds; most of their time they wait


def pairs(points: Sequence[str], count: int) -> list[tuple[str, str]]:
    seed = int(os.environ.get("PER_AGENT_TEST_SEED", random.randrange(2**32)))
    print(f"seed {seed} (set PER_AGENT_TEST_SEED to repeat)")
    every = list(itertools.product(points, repeat=2))
    return random.Random(seed).sample(every, min(count, len(every)))


def die_twice(world: World, upstream: UpstreamServer, how: Scenario, pair: tuple[str, str]) -> int:
    """Die over both steps, one life after the other, and go on. Returns in how many lives death came."""
    try:
        ended = []
        for point in pair:
            ended.append(world.live(how.life, f"{point}:{how.at[0]}"))
            assert ended[-1] in (KILLED, 0)  # what the first left undone, the second may not come to
            assert_books_balance(world)
        go_on(world, upstream, how)
    except BaseException as error:
        error.add_note(f"after deaths at {pair}")
        raise
    return ended.count(KILLED)


def die_in_many_worlds(tmp_path, upstream, legacy, chosen):
    worlds = []
    for n, _ in enumerate(chosen):
        (tmp_path / str(n)).mkdir()
        worlds.append(prepared(tmp_path / str(n), upstream, legacy, HEIR))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        deaths = list(
            pool.map(
                lambda each: die_twice(each[0], upstream, HEIR, each[1]), zip(worlds, chosen, strict=True)
            )
        )
    assert deaths.count(2) >= len(deaths) // 2, "most died twice"


def test_two_deaths_over_what_others_left_lose_nothing_and_double_nothing(tmp_path, upstream, legacy):
    die_in_many_worlds(tmp_path, upstream, legacy, pairs(LEDGER, 4))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_very_many_pairs_of_deaths_over_what_others_left(tmp_path, upstream, legacy):
    die_in_many_worlds(tmp_path, upstream, legacy, pairs(LEDGER, 60))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("life", "estate", "points"),
    [("upstream", "nothing", UPSTREAM), ("requeue", "dead letters", LETTERS)],
    ids=["upstream", "dead letters"],
)
def test_two_deaths_over_delivery_and_over_dead_letters(tmp_path, upstream, legacy, life, estate, points):
    how = Scenario(life, estate)
    for n, pair in enumerate(pairs(points, 8)):
        (tmp_path / str(n)).mkdir()
        upstream.reset()
        die_twice(prepared(tmp_path / str(n), upstream, legacy, how), upstream, how, pair)
