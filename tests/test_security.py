"""What somebody may do who can write where they should not: planted rows, links, pipes, folders; and whose the files are."""

import json
import os
import pickle
import sqlite3
import stat
import textwrap
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from command import Command
from programs import run, start
from sidecar_process import SidecarProcess
from test_disk import Payload, plant
from waiting import until

from per_agent import (
    Agent,
    DeliverySettings,
    Ledger,
    MemoryDestination,
    SpoolError,
    SpoolSettings,
    UpstreamError,
)
from per_agent.errors import ConfigError
from per_agent.event import Activity, encode
from per_agent.settings import AgentSettings, Settings
from per_agent.sidecar.token import token_of
from per_agent.spool import DeadLetter, Parking, Settlement, Store, snapshots
from per_agent.spool.folder import claim, create, prepare

SOON = SpoolSettings(adopt_interval=0.1)
QUICK = DeliverySettings(probe_interval=0.1)
KEPT = "kept by its owner\n"
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as a second user")


def event(user: str) -> bytes:
    return encode(Activity(f"id-{user}", "acme", user, "active", 1.0))


def leave_behind(data_dir: Path, name: str) -> Path:
    """An abandoned spool with three blocks of an event each, a parked event and a dead letter, for the lane `m`."""
    prepare(data_dir)
    taken = create(data_dir)
    store = Store(taken.folder)
    for user in (f"{name}-dead", f"{name}-asleep", f"{name}-0", f"{name}-1", f"{name}-2"):
        with store.transaction() as changes:
            (block,) = changes.append(["m"], [event(user)], 1.0)
        letter = DeadLetter(block.events[0], "refused", "no", 1, 1.0)
        what = {
            "dead": Settlement(dead=[(0, letter)]),
            "asleep": Settlement(parked=[(Parking("k", "asleep", 1.0), [0])]),
        }
        if (settlement := what.get(user.rpartition("-")[2])) is not None:
            with store.transaction() as changes:
                changes.settle(block, settlement)
    store.close()
    taken.release()
    return taken.folder


def block_key(folder: Path, at: int) -> str:
    with closing(Store(folder)) as store:
        return str(store.head("m", None, 10)[0][at].id)


# Planted rows

FORM = {"mode": 1}  # the bytes of a pickle, in a row of our own form
PLANTED: list[dict[str, object]] = [
    {"key": "l/m/b/000000000001-000000000000"},
    {"key": "l/m/b/000000000002-000000000000", **FORM},
    {"key": "l/m/b/0-0"},
    {"key": "l/m/b/planted", **FORM},
    {"key": "l/m/b/000000000003-000000000000", "raw": 0},
    {"key": "l/m/b/000000000004-000000000000", "value": None, "filename": "planted.val"},
    {"key": "l/m/d/000000000001-000000000000"},
    {"key": "l/m/x/000000000001"},
    {"key": "l/m/x/000000000002", **FORM},
    {"key": "l/m/x/planted", **FORM},
    {"key": "l/m/p/k/000000000001-000000000001"},
    {"key": "l/m/p/k/planted"},
    {"key": "l/m/r/k2"},
    {"key": "l/m/r/k3", **FORM},
    {"key": "l/m/k"},
    {"key": "l/m/s"},
    {"key": "l/m/q/000000000001-000000000000"},
    {"key": "l/zz"},
    {"key": "a/x"},
    {"raw": 0},
]


def test_planted_pickles_are_never_opened_and_hold_nothing_up(tmp_path):
    data_dir = tmp_path / "data"
    proofs = tmp_path / "ran"
    proofs.mkdir()
    for name in ("own", "adopted"):  # an agent takes one as its own, and adopts the other
        folder = leave_behind(data_dir, name)
        for number, row in enumerate(PLANTED):
            payload = pickle.dumps(Payload(proofs / f"{name} {number}"))
            plant(folder, **{"key": payload, "mode": 4, "value": payload, **row})
            (folder / "planted.val").write_bytes(payload)
    destination = MemoryDestination(name="m")
    with Agent(data_dir, [destination], spool=SOON, delivery=QUICK) as agent:
        wanted = {f"{name}-{each}" for name in ("own", "adopted") for each in ("asleep", 0, 1, 2)}
        until(lambda: {each.user_id for each in destination.received} >= wanted)
        assert agent.flush(30)
        letters = list(agent.dead_letters)
        assert sorted(each.letter.reason for each in letters) == ["damaged"] * 4 + ["refused"] * 2
        assert agent.dead_letters.requeue(letters) == 2, "what was planted is not sent"
        until(lambda: agent.books()["m"].delivered == 10)
        agent.status(), agent.statistics()
        agent.dead_letters.purge(agent.dead_letters)
        assert list(agent.dead_letters) == []
    assert list(proofs.iterdir()) == []
    assert sorted(each.user_id for each in destination.received) == sorted(
        {*wanted, "own-dead", "adopted-dead"}
    )


def test_a_pickle_in_the_place_of_a_block_costs_that_block_and_is_kept_as_evidence(tmp_path):
    proof = tmp_path / "ran"
    folder = leave_behind(tmp_path, "own")
    key = block_key(folder, 1)
    with closing(sqlite3.connect(folder / "cache.db")) as database, database:
        payload = pickle.dumps(Payload(proof))
        done = database.execute(
            "UPDATE Cache SET mode = 4, value = ? WHERE key = ?", (payload, f"l/m/b/{key}")
        )
        assert done.rowcount == 1
    destination = MemoryDestination(name="m")
    with Agent(tmp_path, [destination], delivery=QUICK) as agent:
        until(lambda: len(destination.received) == 3)
        until(lambda: agent.books()["m"].pending == 1)  # the books go on to count what was lost
        (problem,) = [
            each for one in snapshots(tmp_path) for lane in one.lanes.values() for each in lane.problems
        ]
        assert "1 are pending by the books, 0 lie in blocks" in problem
        agent.close(0)
    with closing(sqlite3.connect(folder / "cache.db")) as database:
        assert database.execute("SELECT value FROM Cache WHERE key = ?", (f"l/m/q/{key}",)).fetchone() == (
            payload,
        )
    assert not proof.exists()


@pytest.mark.parametrize("key", ["l/m/n", "m/seq"])
def test_books_that_are_a_pickle_are_set_aside_and_all_events_are_delivered(tmp_path, key):
    proof = tmp_path / "ran"
    folder = leave_behind(tmp_path, "own")
    with closing(sqlite3.connect(folder / "cache.db")) as database, database:
        database.execute(
            "UPDATE Cache SET mode = 4, value = ? WHERE key = ?", (pickle.dumps(Payload(proof)), key)
        )
    destination = MemoryDestination(name="m")
    with Agent(tmp_path, [destination]) as agent:
        assert agent.add_activity("acme", "new", "active").delivered(30)
        until(lambda: {"own-0", "own-1", "own-2"} <= {each.user_id for each in destination.received})
        assert agent.books()["m"].balanced
    assert not proof.exists()
    (set_aside,) = folder.parent.glob("*.damaged")
    assert list(set_aside.rglob("cache.db")), "what was damaged is kept"


@pytest.mark.parametrize(
    "setting", ["disk_pickle_protocol", "disk_planted", "get", "sqlite_writable_schema", "tag_index"]
)
def test_settings_that_were_planted_in_a_spool_keep_no_agent_from_storing(tmp_path, setting):
    folder = leave_behind(tmp_path, "own")
    with closing(sqlite3.connect(folder / "cache.db")) as database, database:
        database.execute("INSERT OR REPLACE INTO Settings VALUES (?, 'planted')", (setting,))
    with Agent(tmp_path, [MemoryDestination(name="m")]) as agent:
        assert agent.add_activity("acme", "new", "active").delivered(30)


# Modes


def modes(folder: Path) -> dict[str, int]:
    """The mode of everything under *folder*, and of itself; what goes away meanwhile is left out."""
    found: dict[str, int] = {}
    for place, _, names in os.walk(folder):
        for path in (Path(place), *(Path(place, name) for name in names)):
            try:
                found[str(path.relative_to(folder))] = path.lstat().st_mode
            except FileNotFoundError:
                continue
    return found


@pytest.mark.parametrize("umask", [0o000, 0o077], ids=["umask 0", "umask 077"])
def test_all_under_the_data_folder_is_its_owners_alone_whatever_the_umask(tmp_path, upstream, umask):
    both = '[destinations.ledger]\ntype = "ledger"\n[destinations.kit]\ntype = "payment_kit"\naccess_key = "k"\nurl = "{0}"\n'
    sidecar = SidecarProcess(tmp_path, both.format(upstream.url))
    sidecar.data_dir = tmp_path / "made" / "by" / "us"
    sidecar.socket = sidecar.data_dir / "agent.sock"
    sidecar.settings["unix_socket"] = f'"{sidecar.socket}"'
    del sidecar.settings["token"]
    sidecar.write()
    upstream.rule(path="*/meter-events", method="POST", status=413, body={"error": "too large"})
    seen: dict[str, int] = {}
    before = os.umask(umask)
    try:
        with sidecar, sidecar.client() as client:
            body = {"event_name": "m", "customer_id": "c", "value": 1, "identifier": "a"}
            assert client.post("/v1/events?wait=stored", json=body).status_code == 202
            assert client.post(
                "/v1/events?wait=stored", json={"billing_id": "b", "user_id": "u", "activity_type_id": "t"}
            )
            until(lambda: client.get("/v1/dead-letters").json()["total"] == 1)
            until((sidecar.data_dir / "ledger.db-shm").exists)
            asking = threading.Thread(
                target=lambda: client.post("/v1/dead-letters/purge", json={"all": True})
            )
            asking.start()
            until(lambda: seen.update(modes(sidecar.data_dir)) or not asking.is_alive(), every=0.001)
            seen.update(modes(sidecar.data_dir))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(mode) for mode in seen.values() if stat.S_ISDIR(mode)} == {0o700}
    assert {stat.S_IMODE(mode) for mode in seen.values() if stat.S_ISREG(mode)} == {0o600}
    assert {name: stat.S_IMODE(mode) for name, mode in seen.items() if stat.S_ISSOCK(mode)} == {
        "agent.sock": 0o660
    }
    suffixes = {name.rpartition("/")[2].rpartition(".")[2] for name in seen}
    assert suffixes >= {"db", "db-wal", "db-shm", "lock", "token", "ask", "requests"}
    for parent in (tmp_path / "made", tmp_path / "made" / "by"):
        assert stat.S_IMODE(parent.stat().st_mode) & 0o022 == 0, (
            "or others could put another folder in its place"
        )


# Links, pipes and devices in the place of files


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A file of the user's own beside the data folder; at the end it is as it was."""
    file = tmp_path / "victim"
    file.write_text(KEPT)
    file.chmod(0o640)
    yield file
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == (KEPT, 0o640)
    assert file.stat().st_nlink >= 1
    assert sorted(each.name for each in tmp_path.iterdir() if each.name.startswith("victim")) == ["victim"]


def put(path: Path, how: str, victim: Path) -> None:
    """Put a link to *victim*, a pipe or a device in the place of *path*."""
    path.unlink(missing_ok=True)
    match how:
        case "symlink":
            path.symlink_to(victim)
        case "hard link":
            path.hardlink_to(victim)
        case "pipe":
            os.mkfifo(path)
        case "device":
            try:
                os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero: it has no end
            except PermissionError:
                pytest.skip("only root can make a device")


WAYS = ["symlink", "hard link", "pipe", "device"]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(
    "name", ["owner.lock", "cache.db", "cache.db-wal", "cache.db-shm", "cache.db-journal"]
)
def test_a_spool_with_something_else_in_the_place_of_a_file_is_left_alone(tmp_path, victim, how, name):
    data_dir = tmp_path / "data"
    (sound, planted) = leave_behind(data_dir, "sound"), leave_behind(data_dir, "planted")
    put(planted / name, how, victim)
    destination = MemoryDestination(name="m")
    with Agent(data_dir, [destination], spool=SOON, delivery=QUICK) as agent:
        assert agent.add_activity("acme", "new", "active").delivered(30)
        until(lambda: len(destination.received) >= 5)
        if name == "owner.lock":
            assert agent.books()["m"].accepted == 11, "it can be read, and somebody seems to hold it"
        else:
            with pytest.raises(SpoolError, match=r"planted|remove it"):
                agent.books()
            with pytest.raises(SpoolError, match="remove it"):
                list(agent.dead_letters)
        agent.close(5)
    assert {each.user_id for each in destination.received} == {
        "new",
        "sound-asleep",
        "sound-0",
        "sound-1",
        "sound-2",
    }
    assert sound.exists()
    assert planted.exists()


def test_a_folder_of_spools_may_lead_elsewhere_where_its_owner_says_so(tmp_path):
    elsewhere = tmp_path / "bigger disk"
    elsewhere.mkdir(mode=0o700)
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "spools").symlink_to(elsewhere)
    with Agent(tmp_path / "data", [MemoryDestination(name="m")]) as agent:
        assert agent.add_activity("acme", "u", "active").delivered(30)
    assert len(list(elsewhere.iterdir())) == 1


def test_a_spool_that_is_a_link_and_a_folder_that_is_no_spool_are_neither_used_nor_removed(tmp_path):
    data_dir = tmp_path / "data"
    spool = leave_behind(data_dir, "gone")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "letter.txt").write_text(KEPT)
    (spool.parent / "0000").symlink_to(elsewhere)
    (spool.parent / "0000.going").symlink_to(elsewhere)
    (spool.parent / "0001").mkdir()
    (spool.parent / "0001" / "letter.txt").write_text(KEPT)
    (spool / "linked").symlink_to(elsewhere)
    with Agent(data_dir, [MemoryDestination(name="m")], spool=SOON, delivery=QUICK) as agent:
        own = create(data_dir)  # another, so that one is adopted, absorbed and removed
        own.release()
        until(lambda: not own.folder.exists())
        assert agent.flush(30)
        taken = claim(spool)
        assert taken is None
    held = claim(spool)
    assert held is not None
    held.remove()
    assert not spool.exists()
    assert [each.name for each in elsewhere.iterdir()] == ["letter.txt"]
    assert (elsewhere / "letter.txt").read_text() == KEPT
    assert [each.name for each in (spool.parent / "0001").iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("suffix", ["ask", "answer", "taken", "partial"])
def test_a_request_that_is_something_else_overwrites_nothing_and_holds_nobody_up(
    tmp_path, victim, how, suffix
):
    data_dir = tmp_path / "data"
    spool = leave_behind(data_dir, "x")
    with Agent(data_dir, [MemoryDestination(name="m")], delivery=QUICK) as agent:
        agent.start(wait=True)
        requests = spool / "requests"
        requests.mkdir(mode=0o700)
        (filed,) = agent.dead_letters
        asked = {"what": "purge", "lane": "m", "numbers": [filed.number]}
        if suffix == "ask":
            put(requests / "one.ask", how, victim)
            assert agent.dead_letters.purge([filed]) == 1
        else:
            put(requests / f"one.{suffix}", how, victim)
            (requests / "new").write_text(json.dumps(asked))
            (requests / "new").rename(requests / "one.ask")
            until(lambda: not list(agent.dead_letters))
            until(
                lambda: (requests / "one.answer").is_file() and (requests / "one.answer").read_text() == "1"
            )
        assert agent.flush(30)


def test_a_folder_of_requests_that_leads_elsewhere_is_not_looked_into(tmp_path):
    data_dir = tmp_path / "data"
    spool = leave_behind(data_dir, "x")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "question.ask").write_text(KEPT)
    (spool / "requests").symlink_to(elsewhere)
    with Agent(data_dir, [MemoryDestination(name="m")], delivery=QUICK) as agent:
        assert agent.flush(30)
        with pytest.raises(SpoolError, match="symbolic link"):
            agent.dead_letters.purge(agent.dead_letters)
    assert [each.name for each in elsewhere.iterdir()] == ["question.ask"]


def activity(n: int = 0) -> tuple[str, str, str]:
    return "acme", f"u-{n}", "active"


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", ["ledger.db", "ledger.db-wal", "ledger.db-shm"])
def test_a_ledger_that_is_something_else_counts_nothing_and_changes_nothing(tmp_path, victim, how, name):
    if (name == "ledger.db" and how == "symlink") or name != "ledger.db":
        with Agent(tmp_path / "data") as agent:  # one that was in use
            assert agent.add_activity(*activity()).delivered(30)
    else:
        (tmp_path / "data").mkdir(mode=0o700)
    put(tmp_path / "data" / name, how, victim)
    with Agent(tmp_path / "data") as agent:
        receipt = agent.add_activity(*activity(1))
        assert receipt.stored(30)
        until(lambda: agent.status()["destinations"]["ledger"]["state"] == "halted")
        with pytest.raises(UpstreamError) as caught:
            agent.get_report(start="2020-01-01T00:00:00Z")
        assert str(tmp_path / "data" / "ledger.db") in str(caught.value)
        agent.close(0)
    (tmp_path / "data" / name).unlink()
    if name != "ledger.db-wal" and name != "ledger.db-shm":
        with Agent(tmp_path / "data") as agent:
            assert agent.flush(30), "and then it goes on by itself"


def test_an_empty_file_with_another_name_does_not_become_a_ledger_but_one_left_by_a_crash_does(tmp_path):
    data_dir = tmp_path / "data"
    data_dir.mkdir(mode=0o700)
    flag = tmp_path / "flag"
    flag.touch()
    (data_dir / "ledger.db").hardlink_to(flag)
    ledger = Ledger(data_dir / "ledger.db")
    with pytest.raises(UpstreamError, match="hard link"):
        ledger.get_report(None, None)
    assert flag.stat().st_size == 0
    (data_dir / "ledger.db").unlink()
    (data_dir / ".ledger.db.0123456789abcdef").touch(mode=0o600)
    (data_dir / "ledger.db").hardlink_to(data_dir / ".ledger.db.0123456789abcdef")
    ledger.get_report(None, None)
    ledger.close()
    assert {each.name for each in data_dir.iterdir()} <= {"ledger.db", "ledger.db-wal", "ledger.db-shm"}


def sidecar_token(data_dir: Path) -> str:
    return token_of(Settings(agent=AgentSettings(data_dir=data_dir)))


@pytest.mark.parametrize("how", ["pipe", "device"])
def test_a_sidecars_token_that_is_something_else_is_told_and_not_waited_for(tmp_path, victim, how):
    put(tmp_path / "sidecar.token", how, victim)
    with pytest.raises(ConfigError, match="regular file"):
        sidecar_token(tmp_path)
    command = Command(tmp_path, PER_AGENT_DATA_DIR=str(tmp_path))
    done = command("status", "--sidecar", "http://127.0.0.1:9")
    assert (done.code, done.out) == (3, "")


def test_a_new_token_overwrites_nothing_under_the_names_that_it_could_be_made_by(tmp_path, victim):
    (tmp_path / f"sidecar.token.{os.getpid()}").symlink_to(victim)
    token = sidecar_token(tmp_path)
    assert (tmp_path / "sidecar.token").read_text().strip() == token
    assert stat.S_IMODE((tmp_path / "sidecar.token").stat().st_mode) == 0o600
    assert sidecar_token(tmp_path) == token


# Other users


def as_nobody(program: str, data_dir: Path, *arguments: str) -> str:
    """What *program* prints that another user runs on *data_dir*."""
    drop = f"import os; os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    return run(drop + textwrap.dedent(program), data_dir, *arguments)


def reachable(folder: Path) -> None:
    """Let everybody come as far as *folder*, as on a machine they would."""
    for parent in folder.parents:
        if parent.stat().st_mode & 0o001 == 0 and parent.stat().st_uid == os.geteuid():
            parent.chmod(parent.stat().st_mode | 0o011)


ADD = """
import logging
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
with Agent(data_dir, [MemoryDestination(name="m")]) as agent:
    assert agent.add_activity("acme", "u", "active").delivered(30)
    print(agent.status()["spool"]["id"])
"""


@as_root
def test_a_data_folder_that_an_administrator_made_is_used_and_what_is_in_it_is_its_users_alone(tmp_path):
    data_dir = tmp_path / "data"
    data_dir.mkdir(mode=0o755)
    os.chown(data_dir, NOBODY, NOBODY)
    reachable(data_dir)
    assert "WARNING" not in as_nobody(ADD, data_dir)
    assert {
        stat.S_IMODE(each.stat().st_mode) for each in (data_dir / "spools").rglob("*") if each.is_dir()
    } == {0o700}
    assert stat.S_IMODE((data_dir / "spools").stat().st_mode) == 0o700


@as_root
@pytest.mark.parametrize(("mode", "owner"), [(0o777, 0), (0o1777, 0), (0o777, 1), (0o770, NOBODY)])
def test_a_data_folder_that_others_can_change_is_used_and_warned_about_once(tmp_path, mode, owner):
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    data_dir.chmod(mode)
    os.chown(data_dir, owner, NOBODY)
    reachable(data_dir)
    said = as_nobody(ADD, data_dir)
    (warning,) = [line for line in said.splitlines() if line.startswith("WARNING")]
    assert f"folder={data_dir}" in warning
    assert f"chmod go-w {data_dir}" in warning
    assert stat.S_IMODE((data_dir / "spools").stat().st_mode) == 0o700


@as_root
def test_a_data_folder_of_another_user_that_cannot_be_written_is_refused_with_what_to_do(tmp_path):
    data_dir = tmp_path / "data"
    data_dir.mkdir(mode=0o755)
    reachable(data_dir)
    said = as_nobody(
        """
        try:
            Agent(data_dir, [MemoryDestination(name="m")]).start(wait=True)
        except SpoolError as error:
            print(error)
        """,
        data_dir,
    )
    assert "cannot keep a spool here: Permission denied" in said
    assert str(data_dir) in said


@as_root
def test_a_folder_of_spools_that_another_user_linked_elsewhere_is_refused(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "data").mkdir(mode=0o777)
    (tmp_path / "data" / "spools").symlink_to(elsewhere)
    os.chown(tmp_path / "data" / "spools", NOBODY, NOBODY, follow_symlinks=False)
    with (
        pytest.raises(SpoolError, match="symbolic link that another user"),
        Agent(tmp_path / "data") as agent,
    ):
        agent.start(wait=True)
    assert list(elsewhere.iterdir()) == []


@as_root
@pytest.mark.parametrize("name", ["ledger.db", "sidecar.token"])
def test_a_file_that_another_user_linked_elsewhere_is_refused(tmp_path, victim, name):
    (tmp_path / name).symlink_to(victim)
    os.chown(tmp_path / name, NOBODY, NOBODY, follow_symlinks=False)
    if name == "ledger.db":
        with pytest.raises(UpstreamError, match="symbolic link that another user"):
            Ledger(tmp_path / name).get_report(None, None)
    else:
        with pytest.raises(ConfigError, match="symbolic link that another user"):
            sidecar_token(tmp_path)


PLANT = """
import json, shutil
from pathlib import Path
spools = Path(data_dir, "spools")
theirs, forged = sys.argv[2:]
(spools / "00000000000000-00000000").mkdir()
shutil.copytree(theirs, spools / "00000000000000-00000000", dirs_exist_ok=True)
for path in (spools / "00000000000000-00000000", *(spools / "00000000000000-00000000").iterdir()):
    path.chmod(0o777)
"""


@as_root
def test_a_spool_that_another_user_planted_is_neither_billed_nor_written_to_nor_has_it_a_say(tmp_path):
    data_dir = tmp_path / "data"
    mine = leave_behind(data_dir, "mine")
    theirs = leave_behind(tmp_path / "theirs", "theirs")
    with closing(Store(theirs)) as store, store.transaction() as changes:
        changes.absorb(mine.name, {})  # if that counted, mine would be taken for done and deleted
    for path in theirs.iterdir():
        path.chmod(0o644)
    theirs.chmod(0o755)
    (data_dir / "spools").chmod(0o777)
    reachable(data_dir / "spools" / "x")
    reachable(theirs / "x")
    as_nobody(PLANT, data_dir, str(theirs), mine.name)
    destination = MemoryDestination(name="m")
    with Agent(data_dir, [destination], spool=SOON, delivery=QUICK) as agent:
        assert agent.flush(30)
        assert agent.status()["spool"]["id"] == mine.name
    assert {each.user_id for each in destination.received} == {"mine-asleep", "mine-0", "mine-1", "mine-2"}


HOLD = """
from per_agent.destinations import Refused
agent = Agent(data_dir, [MemoryDestination([Refused("no")], name="m")])
try:
    agent.add_activity("acme", "u", "active").delivered(30)
except Exception:
    print("refused", flush=True)
sys.stdin.readline()
agent.close()
"""


@as_root
@pytest.mark.parametrize("left", [False, True], ids=["first", "after one that died over it"])
def test_root_can_ask_another_users_running_agent_to_change_its_dead_letters(tmp_path, left):
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    os.chown(data_dir, NOBODY, NOBODY)
    reachable(data_dir)
    holder = start(f"os.setgid({NOBODY}); os.setuid({NOBODY})\n" + HOLD, data_dir)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "refused\n"
    if left:
        (spool,) = (data_dir / "spools").iterdir()
        (spool / "requests").mkdir(mode=0o700)
    letters = Agent(data_dir).dead_letters
    assert letters.purge(letters) == 1
    _, err = holder.communicate("\n", timeout=60)
    assert (holder.returncode, err) == (0, "")
