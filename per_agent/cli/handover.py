"""Events handed to the running sidecar: in batches, under identifiers made here, until it has stored them.

A connection that breaks leaves open whether the events were taken. They are offered again under the same
identifiers, so a sidecar that is restarted in the middle neither loses nor doubles one.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final, Self

from per_agent.agent.letters import Choice
from per_agent.backoff import Backoff
from per_agent.cli.console import count
from per_agent.cli.exits import ExitCode, Stop
from per_agent.cli.following import Following, Left
from per_agent.cli.sidecar import REMEDY, Sidecar
from per_agent.cli.tally import Outcome, Wait
from per_agent.destinations.outcome import Delivered, Halt, Refused, Retry
from per_agent.event import Event, Identifiers, encode, event_from_record

_AHEAD: Final = 1000  # events read ahead of the sidecar; they may be 64 KiB long each
_PATIENCE: Final = 60.0  # seconds without progress: a restart takes a few, and a full spool may find room
_BACKOFF: Final = Backoff(initial=0.1, ceiling=2.0, retry_after_ceiling=10.0)
_LOOK_EVERY: Final = 0.1  # seconds between looks whether the other thread has ended
_INTERRUPTED: Final = 2.0  # seconds that handing over what was read may still take after Ctrl-C

_Numbered = tuple[int, Event]


class Handover:
    """Takes events for *sidecar*. A thread sends them: a slow pipe is not waited for, and batches form by themselves.

    *patience* is how long delivering may take where it is waited for, in seconds.
    """

    def __init__(self, sidecar: Sidecar, wait: Wait, patience: float) -> None:
        self._sidecar = sidecar
        self._wait = wait
        self._patience = patience
        self._before = sidecar.status() if wait is Wait.DELIVERED else None
        self._new_id = Identifiers().new
        self._waiting: queue.Queue[_Numbered] = queue.Queue(_AHEAD)
        self._rejected: deque[tuple[int, str]] = deque()
        self._last: str | None = None
        self._stored = 0
        self._complete = threading.Event()
        self._abandoned = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="per-agent-handover", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._complete.set()
        if kind is not None:
            self._thread.join(_INTERRUPTED)
        self._abandoned.set()
        self._thread.join(_INTERRUPTED)

    def add(self, number: int, record: Any) -> str:
        """Take the event that *record*, the line *number*, describes; its identifier. Line 0 is no line.

        Waits where the sidecar is slower. Raises `InvalidEvent`, and `Stop` where the sidecar takes no more.
        """
        now = time.time()
        event = event_from_record(record, id=self._new_id(now), now=now)
        encode(event)  # it raises where the event is too long
        while True:
            self._raise_failure()
            try:
                self._waiting.put((number, event), timeout=_LOOK_EVERY)
            except queue.Full:
                continue
            self._last = event.id
            return event.id

    def rejected(self) -> Iterator[tuple[int, str]]:
        """The lines that the sidecar did not take, each with its words; each once."""
        while self._rejected:
            yield self._rejected.popleft()

    def finish(self) -> Outcome:
        """Wait until all is stored, and where that is wanted, delivered. Raises `Stop`."""
        self._complete.set()
        while self._thread.is_alive():
            self._thread.join(_LOOK_EVERY)
        self._raise_failure()
        delivered, refusals, refused = None, [], 0
        seen: dict[str, Any] | None = None
        with suppress(Stop):  # the events are stored, whatever can be seen of the rest
            if self._before is None:
                seen = self._sidecar.status()
            else:
                following = Following(self._sidecar, self._before)
                left = following.wait(lambda left: not (left.waiting or left.parked), self._patience)
                refusals = self._refusals(left)
                refused = len(refusals) if self._stored == 1 else min(left.dead, self._stored)
                delivered = max(0, self._stored - refused - left.waiting - left.parked)
                seen = following.seen
        return Outcome(
            accepted=self._stored,
            stored=self._stored,
            delivered=delivered,
            refused=refused,
            refusals=refusals,
            seen=seen,
            trouble=None,
            keeper=self._sidecar.name,
        )

    def _refusals(self, left: Left) -> list[tuple[str, str]]:
        """Who refused the only event, and why. Of many, the sidecar is not asked for each."""
        if not left.dead or self._stored != 1 or self._last is None:
            return []
        letters = self._sidecar.letters(Choice(ids=frozenset({self._last})))
        return [(self._last, f"{each['destination']}: {each['words'] or each['reason']}") for each in letters]

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    # In the other thread

    def _run(self) -> None:
        try:
            while batch := self._batch():
                self._hand_over(batch)
        except Exception as error:  # noqa: BLE001  (outermost: the main thread raises it)
            self._failure = error

    def _batch(self) -> list[_Numbered]:
        """What was read and is not sent yet, at least one event; empty when all is sent."""
        while True:
            complete = self._complete.is_set()  # asked before the queue, which then holds all that was added
            try:
                batch = [self._waiting.get(timeout=_LOOK_EVERY)]
            except queue.Empty:
                if complete:
                    return []
                continue
            with suppress(queue.Empty):
                while len(batch) < self._sidecar.destination.batch:
                    batch.append(self._waiting.get_nowait())
            return batch

    def _hand_over(self, batch: list[_Numbered]) -> None:
        """Offer *batch* until each event in it is stored or refused. Raises `Stop` where that does not come about."""
        deadline = time.monotonic() + _PATIENCE
        attempt = 0
        while not self._abandoned.is_set():
            left, trouble = self._offer(batch)
            if trouble is None:
                return
            if len(left) < len(batch):
                deadline, attempt = time.monotonic() + _PATIENCE, 0
            batch, attempt = left, attempt + 1
            pause = _BACKOFF.wait(attempt, trouble.after)
            if time.monotonic() + pause > deadline:
                raise self._given_up(batch[0][0], trouble.reason)
            self._abandoned.wait(pause)

    def _offer(self, batch: list[_Numbered]) -> tuple[list[_Numbered], Retry | None]:
        """Offer *batch* once. Gives what is to be offered again, and why."""
        left: list[_Numbered] = []
        trouble: Retry | None = None
        outcomes = self._sidecar.destination.send([event for _, event in batch])
        for one, outcome in zip(batch, outcomes, strict=True):
            match outcome:
                case Delivered():
                    self._stored += 1
                case Refused(reason):
                    self._rejected.append((one[0], reason))
                case Halt(reason):
                    raise Stop(ExitCode.USAGE, f"{self._sidecar.name}: {reason}")
                case Retry():
                    left.append(one)
                    trouble = outcome
        return left, trouble

    def _given_up(self, number: int, reason: str) -> Stop:
        what = "the event is not known to be stored"
        if number:
            what = (
                f"{count(self._stored, 'event')} stored; line {number} and those after it are not known to be"
            )
        answered = reason.startswith("HTTP ")
        remedy = "look what is stuck: per-agent status" if answered else REMEDY
        code = ExitCode.NO if answered else ExitCode.UNREACHABLE
        return Stop(code, f"{what}: {self._sidecar.name}: {reason}; {remedy}")
