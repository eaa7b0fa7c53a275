"""Dead letters and parked events as work: found, taken out and recorded again, asked about, kept for ever."""

import os
import pty
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import diskcache
import httpx
import msgspec
import pytest
from command import Command
from sidecar_process import SidecarProcess
from upstream import UpstreamServer
from waiting import until

from per_agent import Agent, DeliverySettings, MemoryDestination, SpoolSettings
from per_agent.destinations import Refused
from per_agent.spool import Settlement, Store
from per_agent.spool.folder import create
from per_agent.spool.raw import RawDisk

BOTH = """
[spool]
adopt_interval = 60
[delivery]
probe_interval = 0.1
[destinations.per]
type = "per"
activity_token = "token"
url = "{0}"
[destinations.kit]
type = "payment_kit"
access_key = "key-1"
url = "{0}"
"""
USAGE = [
    {"event_name": "m", "customer_id": "c", "value": 0.10, "identifier": "e-1", "metadata": {"a": "ü"}},
    {"event_name": "tokens", "customer_id": "c", "value": 7, "identifier": "e-2", "timestamp": 1.7e9},
]
ACTIVITY = {"billing_id": "acme", "user_id": "u", "activity_type_id": "t", "id": "a-1", "at": 1.6e9}


def refuse(upstream: UpstreamServer) -> None:
    upstream.rule(path="*/meter-events", method="POST", status=413, body={"error": "too large by far"})


@pytest.fixture
def sidecar(tmp_path: Path, upstream: UpstreamServer) -> Iterator[SidecarProcess]:
    with SidecarProcess(tmp_path, BOTH.format(upstream.url)) as running:
        yield running


@pytest.fixture
def client(sidecar: SidecarProcess) -> Iterator[httpx.Client]:
    with sidecar.client() as client:
        yield client


@pytest.fixture
def per_agent(tmp_path: Path, sidecar: SidecarProcess) -> Command:
    """The command, which speaks to the sidecar."""
    command = Command(tmp_path)
    command.environ["PER_AGENT_CONFIG"] = str(sidecar.config)
    del command.environ["PER_AGENT_DATA_DIR"]
    return command


def ndjson(*records: object) -> bytes:
    return b"".join(msgspec.json.encode(each) + b"\n" for each in records)


def total(client: httpx.Client, **query: object) -> int:
    return int(client.get("/v1/dead-letters", params={"limit": 1, **query}).json()["total"])  # type: ignore[arg-type]  # httpx's own type says less than it takes


def bury(client: httpx.Client, upstream: UpstreamServer, *records: object) -> None:
    refuse(upstream)
    before = total(client)
    lines = {"content-type": "application/x-ndjson"}
    assert client.post("/v1/events?wait=stored", content=ndjson(*records), headers=lines).status_code == 202
    until(lambda: total(client) == before + len(records))


# Taken out, and recorded again


def test_what_the_sidecar_exports_is_recorded_again_under_the_same_identifiers(
    per_agent: Command, client: httpx.Client, upstream: UpstreamServer
) -> None:
    bury(client, upstream, *USAGE)
    answer = client.get("/v1/dead-letters.ndjson")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
    exported = {each["identifier"]: each for each in map(msgspec.json.decode, answer.content.splitlines())}
    assert sorted(exported) == ["e-1", "e-2"]
    assert exported["e-1"].items() >= {"value": "0.1", "metadata": {"a": "ü"}}.items()
    assert exported["e-2"]["timestamp"] == 1.7e9
    assert per_agent("dead", "export").out.encode() == answer.content
    upstream.clear_rules()
    assert per_agent.well("dead", "purge", "--all", "--yes").out == "2 dead letters deleted\n"
    done = per_agent.well("add", "-", "--wait", "delivered", stdin=answer.content)
    assert done.out == "2 events stored, 0 bad lines\n"
    stored = {each["identifier"]: each for each in upstream.score().meter_events}
    assert sorted(stored) == ["e-1", "e-2"]
    assert stored["e-1"]["payload"]["value"] == "0.1"
    assert stored["e-2"]["timestamp"] == 1_700_000_000
    books = client.get("/v1/books").json()
    assert books["balanced"] is True
    assert (
        books["destinations"]["kit"].items()
        >= {"accepted": 4, "delivered": 2, "dead": 2, "purged": 2}.items()
    )


@pytest.mark.parametrize(
    "look", ["/v1/dead-letters", "/v1/dead-letters/e-1", "/v1/dead-letters.ndjson", None]
)
def test_an_event_that_is_known_to_be_dead_is_taken_again_under_its_identifier(
    client: httpx.Client, upstream: UpstreamServer, look: str | None
) -> None:
    bury(client, upstream, USAGE[0])
    upstream.clear_rules()
    if look is not None:  # exported, healed, recorded again, and only then deleted
        assert client.get(look).status_code == 200
    else:
        assert client.post("/v1/dead-letters/purge", json={"ids": ["e-1"]}).json() == {"purged": 1}
    assert client.post("/v1/events?wait=stored", json=USAGE[0]).status_code == 202
    until(lambda: upstream.score().identifiers == ["e-1"])
    assert client.post("/v1/events?wait=stored", json=USAGE[0]).status_code == 202
    books = until(lambda: (b := client.get("/v1/books").json()["destinations"]["kit"])["pending"] == 0 and b)
    assert books["accepted"] == 2, "and then it is known again"


def test_an_activity_keeps_its_identifier_and_time_over_an_export(tmp_path: Path) -> None:
    bad, good = MemoryDestination([Refused("no")], name="m"), MemoryDestination(name="m")
    with Agent(tmp_path / "one", [bad]) as agent:
        agent.add_record(ACTIVITY)
        until(lambda: list(agent.dead_letters))
    command = Command(tmp_path, PER_AGENT_DATA_DIR=str(tmp_path / "one"))
    (line,) = command.well("dead", "export").out.splitlines()
    with Agent(tmp_path / "two", [good]) as agent:
        assert agent.add_record(msgspec.json.decode(line)).delivered(30)
    (event,) = good.received
    assert event == bad.offered[0]
    assert (event.id, event.at) == ("a-1", 1.6e9)  # type: ignore[union-attr]  # it is an activity


def test_more_letters_than_are_read_at_once_are_all_exported_in_order(
    client: httpx.Client, upstream: UpstreamServer
) -> None:
    names = [f"e-{n:04}" for n in range(450)]
    bury(client, upstream, *({**USAGE[0], "identifier": name} for name in names))
    lines = client.get("/v1/dead-letters.ndjson").content.splitlines()
    assert sorted(msgspec.json.decode(line)["identifier"] for line in lines) == names
    page = client.get("/v1/dead-letters?limit=1000").json()["dead_letters"]
    assert [msgspec.json.decode(line) for line in lines] == [letter["event"] for letter in page]
    assert client.head("/v1/dead-letters.ndjson").content == b""


def test_an_export_takes_the_lists_filters_and_is_refused_as_the_list_is(
    client: httpx.Client, sidecar: SidecarProcess, upstream: UpstreamServer
) -> None:
    bury(client, upstream, *USAGE)
    for query, expected in {
        "meter=tokens": ["e-2"], "id=e-1&id=none": ["e-1"], "destination=per": [], "reason=TOO+LARGE": ["e-1", "e-2"],
        "older_than=3600": [], "newer_than=3600": ["e-1", "e-2"], "newer_than=3600&older_than=0&meter=m": ["e-1"],
    }.items():  # fmt: skip
        answer = client.get(f"/v1/dead-letters.ndjson?{query}")
        assert answer.status_code == 200
        found = sorted(msgspec.json.decode(line)["identifier"] for line in answer.content.splitlines())
        assert found == expected, query
    for query, name in {
        "limit=5": "limit",
        "after=x": "after",
        "newer_than=soon": "newer_than",
        "reason=": "reason",
    }.items():
        answer = client.get(f"/v1/dead-letters.ndjson?{query}")
        assert (answer.status_code, list(answer.json()["errors"])) == (400, [name])
    assert client.post("/v1/dead-letters.ndjson").status_code == 405
    with sidecar.tcp(None) as stranger:
        assert stranger.get("/v1/dead-letters.ndjson").status_code == 401
    broken = sidecar.data_dir / "spools" / "zz-broken"
    broken.mkdir()
    os.mkfifo(broken / "cache.db")
    assert client.get("/v1/dead-letters.ndjson").status_code == 503


# Chosen


def test_letters_are_chosen_by_how_young_they_are_in_a_folder_and_in_a_sidecar(
    tmp_path: Path,
    per_agent: Command,
    client: httpx.Client,
    upstream: UpstreamServer,
    sidecar: SidecarProcess,
) -> None:
    bury(client, upstream, USAGE[0])
    until(lambda: total(client, older_than=0.3))
    bury(client, upstream, USAGE[1])
    assert total(client, newer_than=3600) == 2
    young = client.post("/v1/dead-letters/requeue", json={"newer_than": 1e-9})
    assert (young.status_code, young.json()) == (200, {"requeued": 0})
    for words, number in ((["--newer-than", "1h"], 2), (["--newer-than", "1h", "--older-than", "1min"], 0)):
        assert len(per_agent.well("dead", "list", "--json", *words).json) == number
    assert sidecar.stop() == 0
    alone = Command(tmp_path, PER_AGENT_DATA_DIR=str(sidecar.data_dir))
    assert len(alone.well("dead", "list", "--json", "--newer-than", "1h").json) == 2
    assert len(alone.well("dead", "list", "--json", "--newer-than", "1h", "--older-than", "1h").json) == 0
    assert alone.well("dead", "purge", "--newer-than", "1h", "--meter", "m", "--yes", "--json").json == {
        "purged": 1
    }


def test_a_wrong_choice_is_told_alike_by_a_folder_and_by_a_sidecar(
    tmp_path: Path,
    per_agent: Command,
    client: httpx.Client,
    upstream: UpstreamServer,
    sidecar: SidecarProcess,
) -> None:
    bury(client, upstream, *USAGE)

    def ask_both(command: Command) -> None:
        for option in ("--meter", "--destination", "--reason"):
            done = command("dead", "requeue", option, "")
            assert (done.code, done.problems) == (2, [f"{option}: is empty"])
        done = command("dead", "list", "--newer-than", "soon")
        assert done.code == 2
        assert done.problems[0].startswith("--newer-than: give a number")
        done = command("dead", "export", "e-1", "none")
        assert (done.code, len(done.out.splitlines())) == (1, 1)
        assert done.problems == ["no dead letter that fits has the identifier none"]

    ask_both(per_agent)
    assert sidecar.stop() == 0
    ask_both(Command(tmp_path, PER_AGENT_DATA_DIR=str(sidecar.data_dir)))


@pytest.mark.parametrize(("answer", "left"), [("\n", 2), ("no\n", 2), ("y\n", 0)])
def test_a_purge_at_a_terminal_asks_first(tmp_path: Path, answer: str, left: int) -> None:
    data_dir = tmp_path / "data"
    with Agent(data_dir, [MemoryDestination([Refused("no")] * 2, name="m")]) as agent:
        for user in ("u-1", "u-2"):
            agent.add_activity("acme", user, "active")
        until(lambda: len(list(agent.dead_letters)) == 2)
    leader, follower = pty.openpty()
    purging = Command(tmp_path, PER_AGENT_DATA_DIR=str(data_dir)).start(
        "dead", "purge", "--all", stdin=follower
    )
    os.close(follower)
    os.write(leader, answer.encode())
    out, err = purging.communicate(timeout=60)
    os.close(leader)
    assert b"Delete 2 dead letters for good? [y/N]" in err
    assert purging.returncode == (1 if left else 0)
    assert (b"nothing was deleted" in err) == bool(left)
    assert (b"2 dead letters deleted" in out) == (not left)
    after = Agent(data_dir, [MemoryDestination(name="m")])
    assert len(list(after.dead_letters)) == left
    assert after.books()["m"].as_dict().items() >= {"dead": 2, "purged": 2 - left, "pending": 0}.items()


# Kept


def test_a_dead_letter_never_expires_and_its_spool_is_never_absorbed_for_as_long_as_it_is_there(
    tmp_path: Path,
) -> None:
    with Agent(tmp_path, [MemoryDestination([Refused("no")], name="m")]) as agent:
        agent.add_activity("acme", "u", "active")
        until(lambda: list(agent.dead_letters))
    (keeper,) = (tmp_path / "spools").iterdir()
    with closing(sqlite3.connect(keeper / "cache.db")) as database:
        rows = database.execute("SELECT key, expire_time FROM Cache").fetchall()
        assert [key for key, expires in rows if expires is not None] == []
    with closing(diskcache.Cache(str(keeper), disk=RawDisk)) as cache:
        assert cache.expire(now=time.time() + 1e10) == 0
        assert cache.evict("m") == cache.cull() == 0
    soon = SpoolSettings(adopt_interval=0.05)
    other = create(tmp_path)  # the agent's own, so that it adopts the one with the letter
    other.release()
    other.folder.rename(other.folder.with_name("0" * 14 + "-00000000"))
    with Agent(tmp_path, [MemoryDestination(name="m")], spool=soon, delivery=DeliverySettings()) as agent:
        for _ in range(2):  # what is drained goes, again and again, and the letter's spool does not
            drained = create(tmp_path)
            with closing(Store(drained.folder)) as store, store.transaction() as changes:
                (block,) = changes.append(["m"], [b"x"], 1.0)
                changes.settle(block, Settlement(delivered=[0]))
            drained.release()
            until(lambda drained=drained: not drained.folder.exists())
        assert keeper.exists()
        (filed,) = agent.dead_letters
        assert filed.spool == keeper.name
        assert agent.dead_letters.requeue([filed]) == 1
        assert agent.flush(30)
        until(lambda: not keeper.exists())
        assert agent.books()["m"].as_dict().items() >= {"accepted": 3, "delivered": 3, "dead": 0}.items()


# Parked


def test_events_of_an_inactive_meter_wait_and_go_on_by_themselves_when_it_is_activated(
    per_agent: Command, client: httpx.Client, upstream: UpstreamServer
) -> None:
    made = per_agent.well(
        "meters", "create", "--name", "M", "--event-name", "m", "--unit", "u", "--json"
    ).json
    per_agent.well("meters", "deactivate", made["id"])
    upstream.settings(meters={"m": "inactive"})
    done = per_agent("add", "-", "--wait", "delivered", "--timeout", "5", "--json", stdin=ndjson(*USAGE))
    assert (done.code, done.json["delivered"], done.json["refused"]) == (1, 1, 0)
    status = per_agent.well("status", "--json").json["destinations"]["kit"]
    assert (status["state"], status["parked"], status["books"]["pending"]) == ("open", 1, 1)
    assert total(client) == 0, "it is not dead"
    upstream.settings(meters={"m": "active"})
    per_agent.well("meters", "activate", made["id"])
    until(lambda: sorted(upstream.score().identifiers) == ["e-1", "e-2"])
    until(lambda: client.get("/v1/books").json()["destinations"]["kit"]["pending"] == 0)
