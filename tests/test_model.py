"""A data folder against a plain model: whatever is done, and wherever it dies, each event has one fate, and the books say so.

Death is a copy of the folder between two steps: that is what SIGKILL leaves, as mapped pages are the kernel's.
"""

import itertools
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from per_agent.books import Books, total
from per_agent.event import Activity, Progress, encode
from per_agent.intake import Intake
from per_agent.journal import files, make
from per_agent.log import Log
from per_agent.settings import IntakeSettings
from per_agent.spool import (
    DeadLetter,
    Parking,
    Settlement,
    Store,
    abandoned,
    folder,
    loose,
    own,
    snapshots,
    take_journals,
)
from per_agent.spool.filed import letters as filed_letters
from per_agent.spool.inflow import Inflow
from per_agent.spool.recovery import Recovery

LANES = ("per", "kit")
KEYS = ("meter:a", "meter:b")
SETTINGS = IntakeSettings(buffer_events=20, block_events=3)


class Death(Exception):
    """Inside a transaction: the process ends before the commit."""


class DataFolderMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="per-agent-model-"))
        self.lives = itertools.count()
        self.numbers = itertools.count()
        self.data_dir = self.root / f"{next(self.lives)}"
        # For each lane, what became of each event: waiting, delivered, dead, purged, or the key it is parked for.
        self.fates: dict[str, dict[bytes, str]] = {lane: {} for lane in LANES}

    @initialize()
    def begin(self) -> None:
        self.claim = own(self.data_dir, LANES)
        self._live()

    def _live(self) -> None:
        self.store = Store(self.claim.folder)
        self.intake = Intake(
            SETTINGS,
            Progress(lambda: None),
            lambda: None,
            lambda identifiers: make(self.data_dir, SETTINGS.buffer_events, identifiers),
        )
        self.inflow = Inflow(self.intake, SETTINGS.block_events, lambda: 1.0)
        self._recover(self.store, self.claim.folder, dies=False)

    def _recover(self, store: Store, place: Path, *, dies: bool) -> None:
        """As an agent does with the journals in the folder that it opens."""
        for path in files(place):
            recovery = Recovery(path, SETTINGS.block_events, Log())
            with store.transaction() as changes:
                recovered = recovery.apply(changes)
            if not dies:
                recovery.done(recovered)

    def _die(self) -> None:
        after = self.root / f"{next(self.lives)}"
        shutil.copytree(self.data_dir, after)
        if self.intake.journal is not None:
            self.intake.journal.let_go()
        self.store.close()
        self.claim.release()
        shutil.rmtree(self.data_dir)
        self.data_dir = after

    def teardown(self) -> None:
        self._die()
        shutil.rmtree(self.root)

    # Coming in

    @rule(lanes=st.sampled_from([("per",), ("kit",), LANES]), count=st.integers(1, 5), long=st.booleans())
    def accept(self, lanes, count, long):
        for _ in range(count):
            n = next(self.numbers)
            event = Activity(f"id-{n}", "acme", f"u-{n}" + "x" * 700 * long, "active", 1.0)
            if self.intake.waiting() < SETTINGS.buffer_events:
                self.intake.accept(event, lanes)
                for lane in lanes:
                    self.fates[lane][encode(event)] = "waiting"

    @rule(dies=st.sampled_from(["no", "no", "before the commit", "after the commit"]))
    def commit(self, dies):
        self.inflow.settle_in(self.claim.folder)
        self.inflow.take()
        try:
            with self.store.transaction() as changes:
                self.inflow.write(changes, self.inflow.carried)
                if dies == "before the commit":
                    raise Death  # noqa: TRY301  (what the store does with it is looked at)
        except Death:
            return self.crash()
        if dies == "after the commit":
            return self.crash()
        self.inflow.written(self.inflow.carried)
        return None

    # Ends and beginnings

    @rule()
    def crash(self):
        self._die()
        self.claim = own(self.data_dir, LANES)
        self._live()

    @rule()
    def die_over_the_recovery(self):
        self._die()
        self.claim = own(self.data_dir, LANES)
        store = Store(self.claim.folder)
        self._recover(store, self.claim.folder, dies=True)
        store.close()
        self.claim.release()
        self.claim = own(self.data_dir, LANES)
        self._live()

    @rule()
    def end_and_begin(self):
        self.commit("no")
        assert self.inflow.finish() == 0
        self.store.close()
        self.claim.release()
        assert not list(self.data_dir.rglob("*.journal"))
        self.claim = own(self.data_dir, LANES)
        self._live()

    @rule(dies=st.sampled_from(["no", "before the folder is removed"]))
    def be_adopted(self, dies):
        """Another process that has a spool of its own takes over what this one left, delivers it and absorbs the rest."""
        self._die()
        folder.prepare(self.data_dir)
        self.claim = folder.create(self.data_dir)
        take_journals(self.data_dir, LANES, self.claim.folder)
        self._live()
        for claim in abandoned(self.data_dir, LANES):
            store = Store(claim.folder)
            self._recover(store, claim.folder, dies=False)
            for lane in LANES:
                for key in KEYS:
                    with store.transaction() as changes:
                        changes.unpark(lane, key)
                for block in store.head(lane, None, 10_000)[0]:
                    with store.transaction() as changes:
                        changes.settle(block, Settlement(delivered=list(block.pending())))
            letters = [(filed.lane, filed.number) for filed in filed_letters(claim.folder)]
            for lane, number in letters:
                with store.transaction() as changes:
                    changes.purge(lane, [number])
            store.close()
            with self.store.transaction() as changes:
                changes.absorb(claim.id, dict(store.books))
            if dies == "no":
                claim.remove()
                with self.store.transaction() as changes:
                    changes.forget(claim.id)
            else:
                claim.release()
        for lane, fates in self.fates.items():
            mine = set(self._in_queue(lane))  # of journals that were in no spool yet
            for event, fate in fates.items():
                if event not in mine and fate != "delivered":
                    fates[event] = "purged" if fate in ("dead", "purged") else "delivered"

    def _in_queue(self, lane: str) -> list[bytes]:
        blocks, _ = self.store.head(lane, None, 10_000)
        return [block.events[at] for block in blocks for at in block.pending()]

    # Going out

    @rule(lane=st.sampled_from(LANES), data=st.data())
    def settle(self, lane, data):
        blocks, damaged = self.store.head(lane, None, 1000)
        assert not damaged
        if not blocks:
            return
        block = data.draw(st.sampled_from(blocks))
        drawn = {at: data.draw(st.sampled_from(["delivered", "dead", *KEYS])) for at in block.pending()}
        letters = [
            (at, DeadLetter(block.events[at], "refused", "no", 1, 1.0))
            for at, f in drawn.items()
            if f == "dead"
        ]
        parked = [(Parking(key, "asleep", 1.0), [at for at, f in drawn.items() if f == key]) for key in KEYS]
        with self.store.transaction() as changes:
            changes.settle(
                block,
                Settlement(
                    delivered=[at for at, f in drawn.items() if f == "delivered"],
                    dead=letters,
                    parked=[each for each in parked if each[1]],
                ),
            )
        for at, fate in drawn.items():
            self.fates[lane][block.events[at]] = fate

    @rule(lane=st.sampled_from(LANES), key=st.sampled_from(KEYS))
    def unpark(self, lane, key):
        with self.store.transaction() as changes:
            changes.unpark(lane, key)
        for event, fate in self.fates[lane].items():
            if fate == key:
                self.fates[lane][event] = "waiting"

    @rule(lane=st.sampled_from(LANES), again=st.booleans())
    def look_after_the_dead(self, lane, again):
        letters = [filed for filed in filed_letters(self.claim.folder) if filed.lane == lane][:2]
        numbers = [filed.number for filed in letters]
        with self.store.transaction() as changes:
            (changes.requeue if again else changes.purge)(lane, numbers)
        for filed in letters:
            self.fates[lane][filed.letter.event] = "waiting" if again else "purged"

    # What always holds

    @invariant()
    def the_books_are_those_of_the_model_whoever_counts(self):
        seen = snapshots(self.data_dir)
        in_memory = [self.intake.in_memory(), self.inflow.in_memory()]
        unstored = [*in_memory, loose(self.data_dir), *(each.journaled for each in seen)]
        counted = total(
            [
                {lane: Books() for lane in LANES},
                *({name: lane.books for name, lane in each.lanes.items()} for each in seen),
                *({lane: Books(n, pending=n) for lane, n in counts.items()} for counts in unstored),
            ]
        )
        for lane, fates in self.fates.items():
            count = Counter(fates.values())
            dead = count["dead"] + count["purged"]
            pending = count["waiting"] + sum(count[key] for key in KEYS)
            expected = Books(len(fates), count["delivered"], dead, 0, pending, count["purged"])
            assert counted[lane] == expected

    @invariant()
    def the_recount_finds_no_problem(self):
        # What was inherited is counted in the books alone: its letters lay elsewhere, and all of them were purged.
        assert [each.problems for one in snapshots(self.data_dir) for each in one.lanes.values()] == [
            [] for one in snapshots(self.data_dir) for _ in one.lanes
        ]

    @invariant()
    def each_event_that_is_pending_lies_in_one_place(self):
        for lane, fates in self.fates.items():
            there = [
                receipt._encoded
                for receipt in (*self.intake._waiting, *self.inflow.carried)
                if lane in receipt._lanes
            ]
            there += self._in_queue(lane)
            assert sorted(there) == sorted(event for event, fate in fates.items() if fate == "waiting")


TestADataFolderAgainstAModel = DataFolderMachine.TestCase
TestADataFolderAgainstAModel.settings = settings(
    max_examples=15,
    stateful_step_count=15,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
@pytest.mark.timeout(900)
class TestADataFolderAgainstAModelForLong(DataFolderMachine.TestCase):
    settings = settings(
        max_examples=100,
        stateful_step_count=30,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
