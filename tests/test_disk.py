"""The ground that the spool stands on: each trap of diskcache and SQLite that would lose events or run planted code.

An upgrade that changes the ground makes one of these fail, loudly.
"""

import os
import pickle
import sqlite3
import stat
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import diskcache
import pytest

from per_agent.errors import SpoolCorrupt, SpoolError
from per_agent.spool.ballast import says_full
from per_agent.spool.disk import FILE, Disk
from per_agent.spool.raw import RawDisk

END = "\x7f"
MIB = 2**20


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "spool"


@pytest.fixture
def disk(folder):
    with opened(folder) as disk:
        yield disk


@contextmanager
def opened(folder: Path) -> Iterator[Disk]:
    disk = Disk(folder)
    try:
        yield disk
    finally:
        disk.disconnect()


def pragma(disk: Disk, name: str) -> object:
    return disk._sql(f"PRAGMA {name}")[0][0]


def plant(folder: Path, **columns: object) -> None:
    """Write a row as somebody else could who may write to the folder."""
    row = {
        "key": "planted",
        "raw": 1,
        "store_time": 0,
        "access_time": 0,
        "mode": 1,
        "value": b"",
        "size": 0,
    } | columns
    with closing(sqlite3.connect(folder / FILE)) as database, database:
        database.execute(
            f"INSERT OR REPLACE INTO Cache ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})",
            tuple(row.values()),
        )


def hide(folder: Path, key: str) -> None:
    """Take the row under *key* out of the index, as damage may do it; the row stays in the table."""
    with closing(sqlite3.connect(folder / FILE, isolation_level=None)) as database:
        schema = "FROM sqlite_master WHERE name = 'Cache_key_raw'"
        index = database.execute(f"SELECT type, name, tbl_name, rootpage, sql {schema}").fetchone()
        (row,) = database.execute(f"SELECT * FROM Cache WHERE key = '{key}'").fetchall()
        database.execute("DELETE FROM Cache WHERE key = ?", (key,))
        database.execute("PRAGMA writable_schema = 1")
        database.execute(f"DELETE {schema}")
        database.execute("PRAGMA schema_version = 1000")
    with closing(sqlite3.connect(folder / FILE, isolation_level=None)) as database:
        database.execute(f"INSERT INTO Cache VALUES ({', '.join('?' * len(row))})", row)
        database.execute("PRAGMA writable_schema = 1")
        database.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", index)
        database.execute("PRAGMA schema_version = 1001")


class Payload:
    """Unpickling it makes a file: the proof that planted code ran."""

    def __init__(self, proof: Path) -> None:
        self._proof = proof

    def __reduce__(self):
        return (Path.touch, (self._proof,))


# Settings


def test_the_settings_that_make_it_durable_are_what_the_database_says(disk):
    assert pragma(disk, "synchronous") == 2, "FULL: an fsync at each commit"
    assert pragma(disk, "journal_mode") == "wal"
    assert pragma(disk, "auto_vacuum") == 1, "FULL: the file shrinks as it drains"
    assert pragma(disk, "mmap_size") == 0, "a file that is cut short under a mapping is a SIGBUS"
    assert pragma(disk, "journal_size_limit") == 8 * MIB
    assert (disk._cache.eviction_policy, disk._cache.cull_limit) == ("none", 0)
    assert disk._cache.disk_min_file_size > 2**32
    assert (disk._cache.statistics, disk._cache.tag_index) == (0, 0)


def test_a_connection_that_had_to_be_made_anew_is_as_durable(disk):
    disk.disconnect()
    disk.connect()
    assert pragma(disk, "synchronous") == 2
    assert pragma(disk, "journal_mode") == "wal"
    assert pragma(disk, "mmap_size") == 0
    assert pragma(disk, "journal_size_limit") == 8 * MIB


@pytest.mark.parametrize(
    ("setting", "value"),
    [("cull_limit", 10), ("eviction_policy", "least-recently-used"), ("disk_min_file_size", 1024)],
)
def test_a_setting_that_does_not_hold_is_refused(disk, setting, value):
    disk._cache.reset(setting, value)
    with pytest.raises(SpoolError, match=setting):
        disk._read_back()


def test_a_weaker_fsync_is_refused(disk):
    disk._sql("PRAGMA synchronous = 1")
    with pytest.raises(SpoolError, match="synchronous"):
        disk._read_back()


def test_another_openers_settings_do_not_outlive_the_next_opening(folder):
    with opened(folder) as disk:
        disk.set("event", b"1")
    other = diskcache.Cache(
        str(folder), eviction_policy="least-recently-stored", cull_limit=10, size_limit=1,
        sqlite_synchronous=1, disk_min_file_size=1, sqlite_mmap_size=MIB, statistics=1,
    )  # fmt: skip
    other.close()
    with opened(folder) as disk:
        assert pragma(disk, "synchronous") == 2
        assert pragma(disk, "mmap_size") == 0
        assert (disk._cache.eviction_policy, disk._cache.cull_limit) == ("none", 0)
        disk.set("big", bytes(MIB))
        assert disk._cache.cull() == 0
        assert disk.get("event") == b"1"
    assert not list(folder.rglob("*.val"))


def test_another_opener_with_the_defaults_of_a_cache_changes_nothing(folder):
    with opened(folder) as disk:
        disk.set("event", b"1")
        with closing(diskcache.Cache(str(folder))) as other:
            assert (other.eviction_policy, other.cull_limit) == ("none", 0), (
                "what it finds is what was stored"
            )
        disk.set("another", b"2")
        assert (disk.get("event"), disk.get("another")) == (b"1", b"2")


# Nothing is evicted


def test_nothing_is_evicted_or_culled_however_much_there_is(disk):
    disk._cache.reset("size_limit", 1, update=False)  # as if the limit were long passed
    with disk.transaction():
        for n in range(300):
            disk.set(f"{n:04}", bytes(20_000))
    assert disk._cache.cull() == 0, "even when somebody asks for it"
    assert len(disk.keys("", END, -1)) == 300
    assert disk._cache.expire() == 0


def test_no_value_becomes_a_file_however_big_it_is(disk, folder):
    value = os.urandom(20 * MIB)
    disk.set("big", value)
    assert disk.get("big") == value
    assert {path.name for path in folder.iterdir()} <= {FILE, f"{FILE}-wal", f"{FILE}-shm"}


# No pickle


@pytest.mark.parametrize(
    "value",
    ["text", 7, 1.5, None, True, [1], {"a": 1}, bytearray(b"x"), memoryview(b"x"), 2**80],
    ids=lambda value: type(value).__name__,
)
def test_only_bytes_are_stored_and_nothing_is_ever_pickled(disk, value):
    with pytest.raises(SpoolCorrupt):
        disk.set("key", value)
    assert disk._sql("SELECT count(*) FROM Cache") == [(0,)]


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "key", [b"key", 7, 1.5, None, ("a", "b"), Text("key")], ids=lambda key: type(key).__name__
)
def test_only_text_is_a_key(disk, key):
    with pytest.raises(SpoolCorrupt):
        disk.set(key, b"value")
    with pytest.raises(SpoolCorrupt):
        disk.get(key)


def test_what_is_stored_is_raw_in_key_and_value(disk):
    disk.set("key", b"value")
    assert disk._sql("SELECT key, raw, mode, filename, value FROM Cache") == [("key", 1, 1, None, b"value")]


@pytest.mark.parametrize("mode", [2, 3, 4])
def test_a_planted_pickle_in_a_value_is_refused_and_not_run(disk, folder, tmp_path, mode):
    proof = tmp_path / "ran"
    plant(folder, mode=mode, value=pickle.dumps(Payload(proof)))
    with pytest.raises(SpoolCorrupt):
        disk.get("planted")
    assert not proof.exists()


def test_a_planted_pickle_in_a_key_is_refused_and_not_run(disk, folder, tmp_path):
    proof = tmp_path / "ran"
    plant(folder, key=pickle.dumps(Payload(proof)), raw=0)
    with pytest.raises(SpoolCorrupt):
        list(disk._cache)
    assert disk.keys("", END, -1) == [], "and no search for keys finds it"
    assert not proof.exists()


def test_a_planted_value_file_is_not_read(disk, folder, tmp_path):
    proof = tmp_path / "ran"
    (folder / "planted.val").write_bytes(pickle.dumps(Payload(proof)))
    plant(folder, mode=4, filename="planted.val", value=None)
    with pytest.raises(SpoolCorrupt):
        disk.get("planted")
    disk.delete("planted")
    assert (folder / "planted.val").exists(), "nor removed: it is not ours"
    assert not proof.exists()


def test_the_planted_pickle_would_have_run_in_a_plain_diskcache(folder, tmp_path):
    # The experiment's own control: without our Disk class the proof appears.
    proof = tmp_path / "ran"
    Disk(folder).disconnect()
    plant(folder, mode=4, value=pickle.dumps(Payload(proof)))
    with closing(diskcache.Cache(str(folder))) as plain:
        plain.get("planted")
    assert proof.exists()


# Keys and transactions


def test_keys_come_in_order_strictly_between_two_bounds_and_no_more_than_asked(disk):
    for key in ("a/2", "a/10", "a", "b/1", "a/1", "a/9"):
        disk.set(key, b"")
    assert disk.keys("a/", f"a/{END}", -1) == ["a/1", "a/10", "a/2", "a/9"]
    assert disk.keys("a/1", "a/9", -1) == ["a/10", "a/2"]
    assert disk.keys("a/", f"a/{END}", 2) == ["a/1", "a/10"]
    assert disk.keys("c", "d", 5) == []


def test_keys_are_found_by_the_index_and_not_by_reading_everything(disk):
    plan = disk._sql(
        "EXPLAIN QUERY PLAN SELECT key FROM Cache WHERE key > 'a' AND key < 'b' AND raw = 1 ORDER BY key LIMIT 1"
    )
    assert all("USING INDEX" in step[-1] or "USING COVERING INDEX" in step[-1] for step in plan), plan
    assert not any("TEMP B-TREE" in step[-1] for step in plan), plan


def test_a_transaction_that_raises_leaves_nothing_behind(disk):
    disk.set("before", b"1")
    with pytest.raises(ZeroDivisionError), disk.transaction():  # noqa: PT012  (all of it is undone)
        disk.set("inside", b"2")
        disk.set("before", b"3")
        disk.delete("before")
        raise ZeroDivisionError
    assert "inside" not in disk
    assert disk.get("before") == b"1"
    with disk.transaction():
        disk.set("after", b"4")
    assert disk.get("after") == b"4"


@pytest.mark.parametrize("size", [1000, 20 * MIB])
def test_a_full_disk_says_so_also_where_sqlite_has_rolled_back_by_itself(disk, size):
    disk.set("before", b"1")
    disk._sql(f"PRAGMA max_page_count = {pragma(disk, 'page_count') + 2000}")
    with pytest.raises(sqlite3.OperationalError) as raised, disk.transaction():  # noqa: PT012  (all of it is undone)
        for n in range(20 * MIB // size):
            disk.set(f"inside/{n}", os.urandom(size))
    assert says_full(raised.value), raised.value
    with disk.transaction():
        disk.set("after", b"2")
    assert disk.keys("", END, -1) == ["after", "before"]


def test_inside_a_transaction_what_it_changed_is_there(disk):
    disk.set("a/1", b"old")
    disk.set("a/2", b"old")
    with disk.transaction():
        disk.set("a/1", b"new")
        disk.set("a/3", b"new")
        disk.delete("a/2")
        assert (disk.get("a/1"), disk.get("a/2"), disk.get("a/3")) == (b"new", None, b"new")
        assert ("a/1" in disk, "a/2" in disk, "a/3" in disk) == (True, False, True)
        assert disk.keys("a/", f"a/{END}", -1) == ["a/1", "a/3"]
        disk.delete("a/1")
        disk.set("a/2", b"again")
        assert disk.rows("a/", f"a/{END}", -1) == [("a/2", b"again"), ("a/3", b"new")]
        disk.set("a/4", b"renamed")
        disk.rename("a/4", "a/5")
    assert disk.rows("a/", f"a/{END}", -1) == [("a/2", b"again"), ("a/3", b"new"), ("a/5", b"renamed")]


def test_a_transaction_is_written_in_a_few_statements_however_many_rows_it_has(disk):
    for n in range(64):
        disk.set(f"old/{n:02}", b"")
    steps: dict[str, None] = {}  # each once: SQLite tells of it again with each trigger that it sets off
    disk._connection.set_trace_callback(steps.setdefault)
    with disk.transaction():
        for n in range(64):
            disk.set(f"new/{n:02}", b"%d" % n)
            disk.delete(f"old/{n:02}")
    assert len(steps) <= 4, "begin, put, delete, commit"
    assert disk.rows("new/", f"new/{END}", -1) == [(f"new/{n:02}", b"%d" % n) for n in range(64)]
    assert disk.keys("old/", f"old/{END}", -1) == []


def test_what_is_written_is_what_diskcache_would_write_and_counts(disk, folder):
    for n in range(200):
        with disk.transaction():
            disk.set(f"{n % 70}", bytes(n))
            disk.delete(f"{n % 30}")
    found = disk._sql("SELECT count(*), sum(size), sum(length(value)) FROM Cache")[0]
    assert found == (len(disk._cache), disk._cache.reset("size"), disk._cache.reset("size"))
    with closing(diskcache.Cache(str(folder), disk=RawDisk)) as other:
        assert {key: other.get(key) for key in other} == dict(disk.rows("", END, -1))
        assert other.set("69", b"its own")
    assert disk.get("69") == b"its own"
    disk.set("69", b"ours")
    assert disk._sql("SELECT count(*) FROM Cache WHERE key = '69'") == [(1,)]


def test_a_row_that_somebody_else_wrote_has_no_value_among_the_rows(disk, folder):
    disk.set("ours", b"1")
    plant(folder, key="pickled", mode=4, value=b"payload")
    plant(folder, key="text", value="text")
    plant(folder, key="filed", filename="planted.val", value=b"")
    assert dict(disk.rows("", END, -1)) == {"ours": b"1", "pickled": None, "text": None, "filed": None}


def test_rows_that_no_index_names_are_counted(disk, folder):
    for n in range(10):
        disk.set(f"{n}", b"")
    last = disk.last_row()
    assert disk.unnamed(0, 4) == (4, 0)
    assert disk.unnamed(last, 4) == (None, 0)
    disk.disconnect()
    hide(folder, "7")
    disk.connect()
    assert disk.get("7") is None
    assert disk.unnamed(0, 100) == (last, 1)


def test_another_connection_sees_a_transaction_whole_or_not_at_all(disk, folder):
    with closing(sqlite3.connect(folder / FILE)) as other:
        with disk.transaction():
            disk.set("one", b"1")
            disk.set("two", b"2")
            assert other.execute("SELECT count(*) FROM Cache").fetchone() == (0,)
        assert other.execute("SELECT count(*) FROM Cache").fetchone() == (2,)


def test_a_transaction_in_a_database_that_somebody_holds_says_so(folder, disk):
    disk._sql("PRAGMA busy_timeout = 50")
    with closing(sqlite3.connect(folder / FILE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"), disk.transaction():
            pass
    with disk.transaction():
        disk.set("after", b"1")
    assert disk.get("after") == b"1"


def test_a_value_comes_back_after_reopening(folder):
    with opened(folder) as disk:
        disk.set("key", b"value")
    with opened(folder) as disk:
        assert disk.get("key") == b"value"
        assert "key" in disk
        assert "other" not in disk


# Files


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_files_are_for_their_owner_only_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        with opened(tmp_path / "spool") as disk:
            disk.set("key", b"value")
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "spool").iterdir()}
    finally:
        os.umask(before)
    assert modes == {FILE: 0o600, f"{FILE}-wal": 0o600, f"{FILE}-shm": 0o600}
    assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700


def test_the_file_shrinks_as_it_drains(disk, folder):
    for n in range(64):
        disk.set(f"{n}", bytes(MIB // 2))
    disk._sql("PRAGMA wal_checkpoint(TRUNCATE)")
    full = (folder / FILE).stat().st_size
    assert full > 30 * MIB
    for n in range(64):
        disk.delete(f"{n}")
    disk._sql("PRAGMA wal_checkpoint(TRUNCATE)")
    assert (folder / FILE).stat().st_size < full / 100


def test_bytes_used_counts_the_log_that_is_not_yet_in_the_database(disk):
    before = disk.bytes_used()
    disk.set("key", bytes(MIB))
    assert disk.bytes_used() >= before + MIB


def test_a_database_that_was_deleted_or_replaced_under_way_is_noticed(disk, folder):
    assert disk.in_place()
    (folder / FILE).rename(folder / "moved")
    assert not disk.in_place()
    (folder / FILE).write_bytes(b"")
    assert not disk.in_place()


@pytest.mark.parametrize(
    "content",
    [b"this is not a database" * 100, b"SQLite format 3\0" + b"\xff" * 5000],
    ids=["text", "damaged"],
)
def test_a_file_that_is_no_database_is_not_taken_for_an_empty_one(folder, content):
    folder.mkdir()
    (folder / FILE).write_bytes(content)
    with pytest.raises(sqlite3.DatabaseError):
        Disk(folder)


def test_the_pinned_release_is_the_one_that_these_tests_were_made_for():
    assert diskcache.__version__ == "5.6.3"
    assert sqlite3.sqlite_version_info >= (3, 31), sys.version
