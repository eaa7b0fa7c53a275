"""The demo's acts: an application and its upstream at work, both killed, both back, and nothing lost."""

import signal
import subprocess
import time
from typing import Any, Final

import msgspec

from per_agent.cli.console import count
from per_agent.cli.demo import recorder
from per_agent.cli.demo.plan import METER, Plan
from per_agent.cli.demo.processes import Processes
from per_agent.cli.demo.stage import Stage, last_line
from per_agent.cli.demo.teller import Teller
from per_agent.cli.demo.upstream import Upstream
from per_agent.cli.demo.watch import Look, Watch
from per_agent.cli.exits import ExitCode, Stop
from per_agent.event import iso

# Of the events, as they are noted as stored.
_GONE_AT: Final = 0.25
_KILL_AT: Final = 0.4
_BACK_AT: Final = 0.5

_SETTLED: Final = 1.0  # seconds; a queue that holds nothing older is worked off
_PATIENCE: Final = 90.0  # seconds beyond the time for recording
_SLOWEST: Final = 100  # events a second that even a busy machine gets through


class Incidents(msgspec.Struct, frozen=True, kw_only=True):
    """What happened on the way.

    Attributes:
        upstream_killed: whether SIGKILL ended the first sidecar.
        killed_at: how many events were noted as stored when SIGKILL ended the recorder; None if it got away.
        gone: seconds that the upstream was gone.
        most_waiting: the most events that waited at once in the application.
        retries: attempts to deliver that failed and were repeated.
        stopped: the exit code of the second sidecar, None where it did not end.
    """

    upstream_killed: bool
    killed_at: int | None
    gone: float
    most_waiting: int
    retries: int
    stopped: int | None


class Answers(msgspec.Struct, frozen=True):
    """What the upstream answered at the end, over HTTP: Per's report, and the meter's statistics."""

    report: Any
    stats: Any


class Story:
    """One performance on *stage*, of *plan*, recorded over *seconds*."""

    def __init__(
        self, stage: Stage, plan: Plan, seconds: float, processes: Processes, teller: Teller
    ) -> None:
        self._stage = stage
        self._plan = plan
        self._seconds = seconds
        self._processes = processes
        self._teller = teller
        self._notes = recorder.Notes(stage.notes)
        self._upstream = Upstream(processes, stage)
        deadline = time.monotonic() + seconds + _PATIENCE + plan.events / _SLOWEST
        self._watch = Watch(stage, self._notes, deadline, self._show)

    def play(self) -> tuple[Incidents, Answers]:
        """All acts. Raises `Stop` where one does not come to its end."""
        tell = self._teller.step
        self._start_upstream()
        tell(
            f"The upstream: `per-agent run` answers on {self._stage.url} as Per and as Payment Kit do, and"
            f" counts in a ledger of its own (process {self._upstream.pid})"
        )
        with self._stage.upstreams() as agent:
            meter = agent.meters.create(name="Tokens", event_name=METER, unit="tokens")["id"]
        tell(f"A meter for {METER} is made there, over HTTP: usage of an unknown meter would have to wait")
        with self._teller.live():
            upstream_killed, killed_at = self._strike()
            self._recover()
        self._teller.curve(self._watch.waited)
        answers = self._ask(meter)
        stopped = self._upstream.stop()
        return Incidents(
            upstream_killed=upstream_killed,
            killed_at=killed_at,
            gone=self._upstream.gone,
            most_waiting=self._watch.most_waiting,
            retries=self._notes.retries(),
            stopped=stopped,
        ), answers

    def _strike(self) -> tuple[bool, int | None]:
        """Both are killed in the middle of their work: whether the upstream was, and at which event the recorder."""
        tell, events = self._teller.step, self._plan.events
        first = self._record()
        tell(
            f"The application: it records {events:,} events, {events / self._seconds:,.0f} a second, and sends"
            f" each by a request of its own (process {first.pid})"
        )
        self._until_recorded(_GONE_AT, first)
        upstream_killed = self._upstream.kill()
        tell(
            f"kill -9: the upstream is gone, after {self._notes.count():,} events. The application goes on"
            " recording, and keeps on the disk what it cannot deliver"
        )
        look = self._until_recorded(_KILL_AT, first)
        first.kill()
        if first.wait() != -signal.SIGKILL:
            tell(f"The application ended with {first.returncode} before it could be killed")
            return upstream_killed, None
        killed_at = self._notes.count()
        tell(
            f"kill -9: the application is gone, too, after {killed_at:,} events were reported as stored;"
            f" {look.waiting:,} of them wait on its disk, and nowhere else"
        )
        return upstream_killed, killed_at

    def _recover(self) -> None:
        """Both come back, and all is delivered."""
        tell = self._teller.step
        second = self._record()
        tell(f"A new process takes over the queue that was left, and records the rest (process {second.pid})")
        self._teller.note(
            "What was under way when the kill hit was not promised yet, stored or not: it is recorded again,"
            " under its identifier."
        )
        self._until_recorded(_BACK_AT, second)
        self._watch.until(
            lambda _: self._notes.retries() > 0 or second.poll() is not None,
            "the application's noticing of the outage",
        )
        self._start_upstream()
        back_at = time.monotonic()
        tell(
            f"The upstream is back after {self._upstream.gone:.1f} s, with all that it had answered for"
            f" (process {self._upstream.pid}); {self._watch.most_waiting:,} events wait for it"
        )
        self._watch.until(lambda look: _is_settled(look) or second.poll() is not None, "the queue's draining")
        tell(
            f"The queue is worked off {time.monotonic() - back_at:.1f} s later;"
            f" {count(self._notes.retries(), 'attempt')} failed meanwhile, and each was made again"
        )
        self._watch.until(lambda _: second.poll() is not None, "recording and delivering the rest")
        if second.returncode:
            log = last_line(self._stage.application_log)
            raise Stop(ExitCode.NO, f"the application ended with {second.returncode}: {log}")
        self._watch.until(lambda look: look.is_empty, "the upstream's own delivery")
        tell(f"All {self._plan.events:,} events are recorded, and nothing waits on either side")

    def _ask(self, meter: str) -> Answers:
        begin = int(self._plan.begin)
        with self._stage.upstreams() as agent:
            report = agent.get_report(iso(begin - 60))
            stats = agent.meter_events.stats(meter_id=meter, start=begin - 60, end=int(time.time()) + 60)
        return Answers(report, stats)

    def _start_upstream(self) -> None:
        self._upstream.start()
        self._watch.until(lambda _: self._upstream.is_ready(), "the sidecar's start")

    def _record(self) -> "subprocess.Popen[bytes]":
        words = recorder.words(self._plan, self._stage.application_config, self._seconds, self._stage.notes)
        return self._processes.start(*words, log=self._stage.application_log)

    def _until_recorded(self, share: float, process: "subprocess.Popen[bytes]") -> Look:
        wanted = int(self._plan.events * share)
        return self._watch.until(
            lambda look: look.recorded >= wanted or process.poll() is not None, "recording"
        )

    def _show(self, look: Look, waited: list[int]) -> None:
        self._upstream.must_live()
        self._teller.show(look, waited, self._upstream, self._plan.events)


def _is_settled(look: Look) -> bool:
    return not look.in_trouble and look.oldest < _SETTLED
