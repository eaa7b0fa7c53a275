"""The store against a plain model: whatever is done in whatever order, contents, order and books agree."""

import itertools
import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from per_agent.books import Books
from per_agent.spool import BlockId, DeadLetter, Parking, Settlement, Store, audit, snapshots
from per_agent.spool.disk import FILE
from per_agent.spool.filed import letters as filed_letters
from per_agent.spool.transaction import parking_key

LANES = ("per", "kit")
KEYS = ("meter:live:a", "meter:live:a/b", "50 % of ü")
MADE_AT = 1_700_000_000.0


def letter(event: bytes) -> DeadLetter:
    return DeadLetter(event, "refused", "no such customer", 1, MADE_AT)


def parking(key: str) -> Parking:
    return Parking(key, "the meter is inactive", MADE_AT)


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "spools" / "one"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def store(place):
    with closing(Store(place)) as opened:
        yield opened


def append(store: Store, *events: bytes, lanes: tuple[str, ...] = ("per",)):
    with store.transaction() as changes:
        return changes.append(lanes, events, MADE_AT)


def settle(store: Store, block, **what) -> None:
    with store.transaction() as changes:
        changes.settle(block, Settlement(**what))


def waiting(store: Store, lane: str = "per") -> list[bytes]:
    sound, damaged = store.head(lane, None, 1000)
    assert not damaged
    return [block.events[at] for block in sound for at in block.pending()]


def problems(place: Path) -> list[str]:
    snapshot = audit.read(place)
    assert snapshot is not None
    return [problem for lane in snapshot.lanes.values() for problem in lane.problems]


# One by one


def test_blocks_come_in_the_order_in_which_they_were_accepted(store):
    for n in range(20):
        append(store, b"%d" % n)
    assert waiting(store) == [b"%d" % n for n in range(20)]


def test_the_head_gives_at_most_what_was_asked_for_and_goes_on_after_it(store):
    for n in range(5):
        append(store, b"%d" % n)
    first, _ = store.head("per", None, 2)
    assert [block.events for block in first] == [[b"0"], [b"1"]]
    rest, _ = store.head("per", first[-1].id, 10)
    assert [block.events for block in rest] == [[b"2"], [b"3"], [b"4"]]
    assert store.head("per", rest[-1].id, 10) == ([], [])
    assert store.head("nobody", None, 10) == ([], [])


def test_an_event_for_two_lanes_is_in_both_under_one_sequence_number(store):
    one, other = append(store, b"event", lanes=LANES)
    assert one.id == other.id
    assert waiting(store, "per") == waiting(store, "kit") == [b"event"]
    settle(store, one, delivered=[0])
    assert (waiting(store, "per"), waiting(store, "kit")) == ([], [b"event"])


def test_sequence_numbers_are_never_used_again(place):
    ids = set()
    for _ in range(3):
        with closing(Store(place)) as store:
            for _ in range(3):
                (block,) = append(store, b"event")
                ids.add(block.id)
                settle(store, block, delivered=[0])
    assert len(ids) == 9


def test_block_ids_of_a_new_store_in_the_same_place_are_other_ones(place):
    with closing(Store(place)) as store:
        before = [append(store, b"event")[0].id for _ in range(3)]
    shutil.rmtree(place)
    place.mkdir()
    with closing(Store(place)) as store:
        assert append(store, b"event")[0].id > max(before)


def test_settling_an_event_twice_counts_it_once(store, place):
    (block,) = append(store, b"a", b"b", b"c")
    settle(store, block, delivered=[0])
    settle(store, block, delivered=[0, 1], dead=[(0, letter(b"a"))], parked=[(parking("k"), [1, 2])])
    assert store.books["per"] == Books(accepted=3, delivered=2, pending=1)
    settle(store, block, delivered=[0, 1, 2])
    assert store.books["per"] == Books(accepted=3, delivered=2, pending=1), "the last one is parked, not here"
    assert problems(place) == []


def test_settling_twice_in_one_transaction_counts_once(store, place):
    (block,) = append(store, b"a", b"b")
    with store.transaction() as changes:
        changes.settle(block, Settlement(delivered=[0]))
        changes.settle(block, Settlement(delivered=[0, 1]))
        changes.settle(block, Settlement(delivered=[1]))
    assert store.books["per"] == Books(accepted=2, delivered=2)
    assert problems(place) == []


def test_half_of_a_block_is_still_settled_after_reopening(place):
    with closing(Store(place)) as store:
        (block,) = append(store, b"a", b"b", b"c")
        settle(store, block, delivered=[1])
    with closing(Store(place)) as store:
        assert waiting(store) == [b"a", b"c"]
        assert store.books["per"] == Books(accepted=3, delivered=1, pending=2)


def test_how_many_events_are_parked_is_known_without_reading_them_also_after_reopening(place):
    with closing(Store(place)) as store:
        (block,) = append(store, b"a", b"b", b"c")
        settle(store, block, parked=[(parking("k"), [0, 2]), (parking("l"), [1])])
        assert store.known.parked == {"per": 3}
        with suppress(ZeroDivisionError), store.transaction() as changes:
            changes.unpark("per", "k")
            raise ZeroDivisionError
        assert store.known.parked == {"per": 3}
        with store.transaction() as changes:
            changes.unpark("per", "l")
    with closing(Store(place)) as store:
        assert store.known.parked == {"per": 2}
        store._disk.delete("l/per/k")
    with closing(Store(place)) as store:
        assert store.known.parked == {"per": 2}, "a store that was made before the count was kept is counted"


def test_parked_events_are_not_in_the_queue_until_they_may_go_on_in_their_old_place(store, place):
    (first,) = append(store, b"a", b"b")
    append(store, b"c")
    settle(store, first, parked=[(parking("k"), [0])])
    assert waiting(store) == [b"b", b"c"]
    assert store.parkings("per") == [parking("k")]
    assert store.books["per"].pending == 3
    with store.transaction() as changes:
        assert changes.unpark("per", "k")
    assert waiting(store) == [b"b", b"a", b"c"]
    assert store.parkings("per") == []
    assert problems(place) == []


def test_many_parked_blocks_go_on_a_bounded_number_at_a_time(store, place):
    for n in range(150):
        (block,) = append(store, b"%d" % n)
        settle(store, block, parked=[(parking("k"), [0])])
    turns = 0
    done = False
    while not done:
        turns += 1
        with store.transaction() as changes:
            done = changes.unpark("per", "k")
        assert bool(store.parkings("per")) is not done
    assert turns == 3
    assert waiting(store) == [b"%d" % n for n in range(150)]
    assert problems(place) == []


def test_pending_through_a_number_knows_of_blocks_and_of_what_is_parked(store):
    (one,) = append(store, b"a")
    (two,) = append(store, b"b", lanes=("kit",))
    assert store.pending_through(two.id.seq)
    settle(store, one, parked=[(parking("k"), [0])])
    settle(store, two, delivered=[0])
    assert store.pending_through(one.id.seq), "it is parked, and so pending"
    assert not store.pending_through(one.id.seq - 1)
    with store.transaction() as changes:
        changes.unpark("per", "k")
    (again,), _ = store.head("per", None, 1)
    settle(store, again, delivered=[0])
    assert not store.pending_through(two.id.seq)


def test_a_dead_letter_keeps_the_event_and_the_reason_until_it_is_requeued(store, place):
    (block,) = append(store, b"a", b"b")
    settle(store, block, dead=[(1, letter(b"b"))], delivered=[0])
    (filed,) = filed_letters(place)
    assert filed.letter == letter(b"b")
    with store.transaction() as changes:
        (again,) = changes.requeue("per", [filed.number, 12345])
    assert again.id.seq > block.id.seq
    assert waiting(store) == [b"b"]
    assert store.books["per"] == Books(accepted=2, delivered=1, pending=1)
    with store.transaction() as changes:
        assert changes.requeue("per", [filed.number]) == [], "it is no longer there"
    assert problems(place) == []


def test_a_purged_letter_is_gone_and_stays_counted(store, place):
    (block,) = append(store, b"a")
    settle(store, block, dead=[(0, letter(b"a"))])
    (filed,) = filed_letters(place)
    with store.transaction() as changes:
        assert changes.purge("per", [filed.number, 12345]) == 1
    with store.transaction() as changes:
        assert changes.purge("per", [filed.number]) == 0
    assert store.books["per"] == Books(accepted=1, dead=1, purged=1)
    assert list(filed_letters(place)) == []
    assert problems(place) == []


def test_more_letters_than_a_page_are_all_listed_in_order(store, place):
    for lane in LANES:
        (block,) = append(store, *(b"%d" % n for n in range(450)), lanes=(lane,))
        settle(store, block, dead=[(at, letter(event)) for at, event in enumerate(block.events)])
    listed = [(filed.lane, filed.letter.event) for filed in filed_letters(place)]
    assert listed == [(lane, b"%d" % n) for lane in sorted(LANES) for n in range(450)]


def test_a_flipped_byte_on_the_disk_is_found_and_set_aside_with_what_it_lost(store, place):
    (block,) = append(store, b"a" * 100, b"b" * 100, b"c" * 100)
    append(store, b"sound")
    settle(store, block, delivered=[0])
    with closing(sqlite3.connect(place / FILE)) as database, database:
        at = (f"l/per/b/{block.id}",)
        ((packed,),) = database.execute("SELECT value FROM Cache WHERE key = ?", at)
        flipped = packed[:-9] + bytes([packed[-9] ^ 1]) + packed[-8:]
        database.execute("UPDATE Cache SET value = ? WHERE key = ?", (flipped, *at))
    sound, damaged = store.head("per", None, 10)
    assert [one.events for one in sound] == [[b"sound"]]
    assert damaged == [block.id]
    with store.transaction() as changes:
        assert changes.set_aside("per", block.id) == 2
    assert waiting(store) == [b"sound"]
    assert store.books["per"] == Books(accepted=4, delivered=1, dead=2, pending=1)
    assert problems(place) == []
    with store.transaction() as changes:
        assert changes.set_aside("per", block.id) == 0, "it is there no more"
    assert store.known.damaged == {"per": 2}
    with closing(Store(place)) as again:
        assert again.known.damaged == {"per": 2}


def test_a_row_that_somebody_else_wrote_in_the_place_of_a_block_is_set_aside_too(store, place):
    (block,) = append(store, b"a")
    append(store, b"sound")
    with closing(sqlite3.connect(place / FILE)) as database, database:
        database.execute("UPDATE Cache SET mode = 4 WHERE key = ?", (f"l/per/b/{block.id}",))
    _, damaged = store.head("per", None, 10)
    assert damaged == [block.id]
    with store.transaction() as changes:
        changes.set_aside("per", block.id)
    assert waiting(store) == [b"sound"]
    assert any("lie in blocks" in problem for problem in problems(place)), "and the books show it"


def test_events_are_parked_where_somebody_else_wrote_a_row_in_the_place_of_what_they_wait_for(store, place):
    first, second = append(store, b"a"), append(store, b"b")
    settle(store, first[0], parked=[(parking("meter"), [0])])
    with closing(sqlite3.connect(place / FILE)) as database, database:
        key = parking_key("per", "meter")
        assert database.execute("UPDATE Cache SET mode = 4 WHERE key = ?", (key,)).rowcount == 1
    settle(store, second[0], parked=[(parking("meter"), [0])])
    assert store.parkings("per") == [parking("meter")]
    with store.transaction() as changes:
        assert changes.unpark("per", "meter")
    assert waiting(store) == [b"a", b"b"]


def test_a_transaction_that_raises_changes_nothing_on_the_disk_or_in_memory(store, place):
    (block,) = append(store, b"a", b"b")
    before, seq = dict(store.books), store.seq
    with pytest.raises(ZeroDivisionError), store.transaction() as changes:  # noqa: PT012  (all of it is undone)
        changes.append(LANES, [b"c"], MADE_AT)
        changes.settle(block, Settlement(delivered=[0], dead=[(1, letter(b"b"))]))
        changes.drop("kit", 5)
        changes.absorb("another", {"per": Books(9, 9)})
        raise ZeroDivisionError
    assert (store.books, store.seq, block.settled) == (before, seq, 0)
    assert waiting(store) == [b"a", b"b"]
    assert problems(place) == []


def test_inherited_books_are_added_once_however_often_it_is_asked(store, place):
    for _ in range(3):
        with store.transaction() as changes:
            changes.absorb("dead-spool", {"per": Books(7, 5, 2, purged=2)})
    assert store.books == {"per": Books(7, 5, 2, purged=2)}
    snapshot = audit.read(place)
    assert snapshot is not None
    assert snapshot.absorbed == ("dead-spool",)
    with store.transaction() as changes:
        changes.forget("dead-spool")
    assert audit.read(place).absorbed == ()


def test_what_the_courier_said_of_a_lane_can_be_read_from_outside(store, place):
    with store.transaction() as changes:
        changes.note("per", b'{"state":"halted"}')
        assert not changes.changed, "a note is no change of what is counted"
    assert audit.read(place).lanes["per"].note == b'{"state":"halted"}'


def test_the_audit_notices_a_block_that_vanished(store, place):
    append(store, b"a", b"b")
    (block,) = append(store, b"c")
    store._disk.delete(f"l/per/b/{block.id}")
    assert problems(place) == ["3 are pending by the books, 2 lie in blocks"]


def test_the_audit_notices_a_letter_that_vanished(store, place):
    (block,) = append(store, b"a")
    settle(store, block, dead=[(0, letter(b"a"))])
    (filed,) = filed_letters(place)
    store._disk.delete(f"l/per/x/{filed.number:012x}")
    assert problems(place) == [
        "1 are dead by the books, 0 letters lie there, 0 were purged, 0 lost with damaged blocks"
    ]


# In any order


class Abort(Exception):
    """Raised inside a transaction: nothing of it may stay."""


@dataclass
class LaneModel:
    """One lane as plain dicts. Events are known by their bytes; each value is the event's sequence number."""

    waiting: dict[bytes, int] = field(default_factory=dict)
    parked: dict[str, dict[bytes, int]] = field(default_factory=dict)
    dead: set[bytes] = field(default_factory=set)
    accepted: int = 0
    delivered: int = 0
    dropped: int = 0
    purged: int = 0
    damaged: int = 0
    inherited: Books = Books()  # noqa: RUF009  (frozen)

    @property
    def books(self) -> Books:
        return self.inherited + Books(
            accepted=self.accepted,
            delivered=self.delivered,
            dead=len(self.dead) + self.purged + self.damaged,
            dropped=self.dropped,
            pending=len(self.waiting) + sum(map(len, self.parked.values())),
            purged=self.purged,
        )


class StoreMachine(RuleBasedStateMachine):
    """Every rule changes the store in one transaction and the model alike; the invariants compare them."""

    def __init__(self) -> None:
        super().__init__()
        self.data_dir = Path(tempfile.mkdtemp(prefix="per-agent-store-"))
        self.place = self.data_dir / "spools" / "one"
        self.place.mkdir(parents=True)
        self.numbers = itertools.count()
        self.model = {lane: LaneModel() for lane in LANES}
        self.inherited: set[str] = set()

    @initialize()
    def open(self) -> None:
        self.store = Store(self.place)

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.data_dir)

    # What is done

    @rule(lanes=st.sampled_from([("per",), ("kit",), LANES]), count=st.integers(1, 5))
    def append(self, lanes, count):
        events = [b"event %d" % next(self.numbers) for _ in range(count)]
        with self.store.transaction() as changes:
            blocks = changes.append(lanes, events, MADE_AT)
        for block in blocks:
            lane = self.model[block.lane]
            lane.waiting |= dict.fromkeys(events, block.id.seq)
            lane.accepted += count

    @rule(lane=st.sampled_from(LANES), data=st.data())
    def settle(self, lane, data):
        blocks, _ = self.store.head(lane, None, 1000)
        if not blocks:
            return
        block = data.draw(st.sampled_from(blocks))
        # Positions that are settled already are among them: nothing may count twice.
        fates = data.draw(
            st.lists(
                st.sampled_from(["stays", "delivered", "dead", *KEYS]),
                min_size=block.count,
                max_size=block.count,
            )
        )
        at = {fate: [at for at, drawn in enumerate(fates) if drawn == fate] for fate in set(fates)}
        pending = set(block.pending())
        with self.store.transaction() as changes:
            changes.settle(
                block,
                Settlement(
                    delivered=at.get("delivered", ()),
                    dead=[(here, letter(block.events[here])) for here in at.get("dead", ())],
                    parked=[(parking(key), at[key]) for key in KEYS if key in at],
                ),
            )
        model = self.model[lane]
        for here in pending:
            event, fate = block.events[here], fates[here]
            if fate == "stays":
                continue
            seq = model.waiting.pop(event)
            assert seq == block.id.seq
            if fate == "delivered":
                model.delivered += 1
            elif fate == "dead":
                model.dead.add(event)
            else:
                model.parked.setdefault(fate, {})[event] = seq

    @rule(lane=st.sampled_from(LANES), key=st.sampled_from(KEYS))
    def unpark(self, lane, key):
        with self.store.transaction() as changes:
            assert changes.unpark(lane, key)
        self.model[lane].waiting |= self.model[lane].parked.pop(key, {})

    @rule(lane=st.sampled_from(LANES), data=st.data())
    def requeue(self, lane, data):
        chosen = self._some_letters(lane, data)
        with self.store.transaction() as changes:
            blocks = changes.requeue(lane, [filed.number for filed in chosen])
        model = self.model[lane]
        for filed in chosen:
            model.dead.remove(filed.letter.event)
            model.waiting[filed.letter.event] = blocks[0].id.seq

    @rule(lane=st.sampled_from(LANES), data=st.data())
    def purge(self, lane, data):
        chosen = self._some_letters(lane, data)
        with self.store.transaction() as changes:
            assert changes.purge(lane, [filed.number for filed in chosen]) == len(chosen)
        self.model[lane].dead -= {filed.letter.event for filed in chosen}
        self.model[lane].purged += len(chosen)

    def _some_letters(self, lane, data):
        letters = [filed for filed in filed_letters(self.place) if filed.lane == lane]
        chosen = data.draw(st.sets(st.integers(0, max(0, len(letters) - 1)), max_size=3))
        return [letters[at] for at in sorted(chosen) if at < len(letters)]

    @rule(lane=st.sampled_from(LANES), data=st.data())
    def set_aside(self, lane, data):
        blocks, _ = self.store.head(lane, None, 1000)
        if not blocks:
            return
        block = data.draw(st.sampled_from(blocks))
        pending = [block.events[at] for at in block.pending()]
        with self.store.transaction() as changes:
            assert changes.set_aside(lane, block.id) == len(pending)
        for event in pending:
            del self.model[lane].waiting[event]
        self.model[lane].damaged += len(pending)

    @rule(lane=st.sampled_from(LANES), count=st.integers(1, 100))
    def drop(self, lane, count):
        with self.store.transaction() as changes:
            changes.drop(lane, count)
        self.model[lane].accepted += count
        self.model[lane].dropped += count

    @rule(
        name=st.sampled_from(["x", "y"]),
        delivered=st.integers(0, 9),
        dead=st.integers(0, 9),
        dropped=st.integers(0, 9),
    )
    def absorb(self, name, delivered, dead, dropped):
        books = Books(delivered + dead + dropped, delivered, dead, dropped, purged=dead)
        with self.store.transaction() as changes:
            changes.absorb(name, {"kit": books})
        if name not in self.inherited:
            self.inherited.add(name)
            self.model["kit"].inherited += books

    @precondition(lambda self: self.inherited)
    @rule()
    def forget(self):
        # The folder of an absorbed spool is gone, and its name with it: it does not come back.
        with self.store.transaction() as changes:
            for name in self.inherited:
                changes.forget(name)
                changes.absorb(name, {})

    @rule(lane=st.sampled_from(LANES), data=st.data())
    def abort(self, lane, data):
        """All of the above in one transaction that raises: nothing of it may stay, here or on the disk."""
        blocks, _ = self.store.head(lane, None, 1000)
        letters = [filed.number for filed in filed_letters(self.place) if filed.lane == lane]
        marks = [block.settled for block in blocks]
        with pytest.raises(Abort), self.store.transaction() as changes:  # noqa: PT012  (all of it is undone)
            changes.append(LANES, [b"never"], MADE_AT)
            for block in blocks:
                every = range(block.count)
                what = data.draw(
                    st.sampled_from(
                        [
                            Settlement(delivered=every),
                            Settlement(dead=[(at, letter(b"never")) for at in every]),
                            Settlement(parked=[(parking(KEYS[0]), every)]),
                        ]
                    )
                )
                changes.settle(block, what)
            changes.requeue(lane, letters[:2])
            changes.purge(lane, letters[2:])
            for key in KEYS:
                changes.unpark(lane, key)
            changes.drop(lane, 3)
            changes.absorb("never", {lane: Books(1, 1)})
            raise Abort
        assert [block.settled for block in blocks] == marks

    @rule()
    def reopen(self):
        seq = self.store.seq
        self.store.close()
        self.store = Store(self.place)
        assert self.store.seq >= seq, "no sequence number is given out again"

    # What always holds

    @invariant()
    def the_books_balance_and_are_those_of_the_model(self):
        for lane, model in self.model.items():
            books = self.store.books.get(lane, Books())
            assert books == model.books
            assert books.balanced

    @invariant()
    def the_recount_finds_no_problem(self):
        for snapshot in snapshots(self.data_dir):
            for lane, found in snapshot.lanes.items():
                assert found.books == self.model[lane].books
                # What was inherited is counted in the books alone: its blocks and letters lay elsewhere.
                assert found.problems == []

    @invariant()
    def the_queue_holds_what_the_model_holds_in_the_order_of_acceptance(self):
        for lane, model in self.model.items():
            blocks, damaged = self.store.head(lane, None, 1000)
            assert damaged == []
            ids = [block.id for block in blocks]
            assert ids == sorted(ids)
            assert len(set(ids)) == len(ids)
            found = [(block.events[at], block.id.seq) for block in blocks for at in block.pending()]
            assert len(found) == len(model.waiting)
            assert dict(found) == model.waiting
            assert all(any(True for _ in block.pending()) for block in blocks), "a settled block is gone"

    @invariant()
    def the_parked_and_the_dead_are_those_of_the_model(self):
        letters = list(filed_letters(self.place))
        for lane, model in self.model.items():
            assert {one.key for one in self.store.parkings(lane)} == {
                key for key, some in model.parked.items() if some
            }
            assert self.store.known.parked.get(lane, 0) == sum(map(len, model.parked.values()))
            assert sorted(filed.letter.event for filed in letters if filed.lane == lane) == sorted(model.dead)

    @invariant()
    def what_is_pending_is_found_to_be_pending(self):
        seqs = [
            seq
            for model in self.model.values()
            for some in (model.waiting, *model.parked.values())
            for seq in some.values()
        ]
        assert self.store.pending_through(self.store.seq) is bool(seqs)
        if seqs:
            assert self.store.pending_through(min(seqs))
            assert not self.store.pending_through(min(seqs) - 1)


TestStoreAgainstAModel = StoreMachine.TestCase
TestStoreAgainstAModel.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_a_block_id_is_a_place_in_the_queue():
    assert sorted([BlockId(2), BlockId(1, 7), BlockId(1)]) == [BlockId(1), BlockId(1, 7), BlockId(2)]
