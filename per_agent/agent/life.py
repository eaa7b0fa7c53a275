"""The life of an agent: begun by its first event, ended by `close`, the program's end, or, in a child, by a fork."""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from per_agent.agent import hooks
from per_agent.agent.engine import Engine
from per_agent.agent.reload import plan
from per_agent.agent.statistics import Statistics, statistics
from per_agent.destinations import Destination
from per_agent.errors import AgentClosed
from per_agent.event import Identifiers, Progress
from per_agent.intake import Intake
from per_agent.journal import make as make_journal
from per_agent.log import Log
from per_agent.settings import (
    DeliverySettings,
    IntakeSettings,
    Settings,
    SpoolSettings,
    default_data_dir,
)

T = TypeVar("T")

_PAUSES: Final = (0.0, *(0.001 * 2**n for n in range(8)))  # seconds before each look at what is at rest
_left_to_parents: list[Any] = []  # keeps what belongs to a parent process from being taken down in its child


class Life:
    """What an agent has of parts that live and end. For any thread.

    Attributes:
        intake: takes the events in; another one after a fork.
        engine: the running parts; None before the first event, after the end, and at first after a fork.
        described: the settings that the agent was made from, as far as they are in force; None for one that
            was made by hand.
        new_id: makes identifiers for events that are to have one at once.
    """

    def __init__(
        self,
        data_dir: Path,
        destinations: Sequence[Destination],
        *,
        intake: IntakeSettings,
        spool: SpoolSettings,
        delivery: DeliverySettings,
        exit_timeout: float,
    ) -> None:
        self._data_dir = data_dir
        self._destinations = destinations
        self._intake_settings = intake
        self._spool_settings = spool
        self._delivery_settings = delivery
        self._exit_timeout = exit_timeout
        self._starting = threading.RLock()  # a signal handler may record an event while an agent starts
        self._closed = False
        self._log = Log()
        self.described: Settings | None = None
        self.engine: Engine | None = None
        self._ended: Engine | None = None
        self._renew()
        hooks.watch(self)

    def start(self, *, wait: bool) -> None:
        """As `Agent.start`."""
        with self._starting:
            if self._closed:
                raise AgentClosed("the agent was closed")
            self._start_engine()
            engine = self.engine
        if wait and engine is not None:
            engine.started.wait()
            engine.spool.wait_opened()

    def flush(self, timeout: float | None) -> bool:
        """As `Agent.flush`."""
        self.start(wait=False)
        engine = self.engine
        return engine is not None and engine.flush(timeout)

    def close(self, timeout: float | None) -> bool:
        """As `Agent.close`."""
        with self._starting:
            self._closed = True
            self.intake.close()
            if self.engine is None and self._ended is None:
                self.intake.seal()  # there is no spooler to do it: what still slips in is refused, or seen here
                if self.intake.waiting():
                    self._start_engine(store_here=True)
            engine, self.engine = self.engine, None
            if engine is not None:
                self._ended = engine
                return engine.stop(timeout)
            for destination in self._destinations:
                destination.close()  # passthrough calls may have opened them
            return not self.intake.waiting()

    def ended(self) -> None:
        """The program ends, and nobody called `close`. Called by the hooks of this process."""
        self.close(self._exit_timeout)

    def forked(self) -> None:
        """This is a forked child: leave what is the parent's alone, and begin afresh. Called by the hooks."""
        self.progress.orphan()
        self.intake.orphan()
        _left_to_parents.append((self.engine, self.intake, self.progress))
        self.engine = self._ended = None
        self._starting = threading.RLock()
        self._renew()

    def _renew(self) -> None:
        self.new_id = Identifiers().new
        self.progress = Progress(self._wake)
        settings = self._intake_settings
        make = partial(make_journal, self._data_dir, settings.buffer_events) if settings.journal else None
        self.intake = Intake(settings, self.progress, self._wake, make)
        if self._closed:
            self.intake.close()
        for destination in self._destinations:
            destination.open(self._data_dir)

    def _is_running(self) -> bool:
        return self.engine is not None

    def _start_engine(self, *, store_here: bool = False) -> None:
        """Make the running parts. *store_here*: also where they cannot have threads, so that `stop` stores."""
        if self._is_running():
            return
        engine = Engine(
            self._data_dir,
            self._destinations,
            self.intake,
            self.progress,
            intake_settings=self._intake_settings,
            spool_settings=self._spool_settings,
            delivery_settings=self._delivery_settings,
        )
        if self._is_running():
            return  # a signal handler recorded an event meanwhile, and so has started one
        try:
            self.engine = engine
            engine.start()
        except RuntimeError:
            engine.abandon()
            if not store_here:
                self.engine = None
                self._log.error("no thread can be started: events wait in memory")
                self.intake.wake_at(1)  # the next event tries again
            return
        except (
            BaseException
        ):  # out of a signal handler: an engine without a thread would never be looked after
            if engine.abandon():
                self.engine = None
            raise
        hooks.before_threads_end(engine.started)
        hooks.at_end_of_child(self.ended)

    def _wake(self) -> None:
        """Somebody left an event: have it looked after. Must not wait, and never raises."""
        engine = self.engine
        if engine is not None:
            engine.spool.wake()
        elif not self._closed:
            with self._starting:
                if not self._closed:  # it may have been closed while this waited
                    self._start_engine()

    # How it goes

    def at_rest(self, look: Callable[[Mapping[str, int]], T]) -> T:
        """What *look* finds on the disk, given for each lane the events that are in memory alone.

        It looks again, a few times, where events went to the disk meanwhile: they may have been seen in both places,
        or in none.
        """
        for pause in _PAUSES:
            time.sleep(pause)
            engine = self.engine
            moves = 0 if engine is None else engine.spool.moves
            unstored = Counter(self.intake.in_memory())
            unstored.update({} if engine is None else engine.spool.in_memory())
            found = look(unstored)
            if self.engine is engine and not moves % 2 and (engine is None or engine.spool.moves == moves):
                break
        return found

    def status(self) -> dict[str, Any]:
        """As `Agent.status`."""
        engine = self.engine
        parts = {} if engine is None else engine.status()
        journal = self.intake.journal
        return {
            "running": engine is not None,
            "overflows": self.intake.overflows,
            "journal": {
                "id": None if journal is None else journal.id,
                "trouble": self.intake.journal_trouble,
            },
            **parts,
        }

    def pulse(self) -> list[str]:
        """As `Agent.pulse`."""
        engine = self.engine
        return [] if engine is None else engine.pulse()

    def statistics(self) -> Statistics:
        """As `Agent.statistics`."""
        names = [each.name for each in self._destinations]
        return statistics(names, self.intake, self.engine or self._ended)

    @property
    def settled(self) -> bool:
        """As `Agent.settled`."""
        engine = self.engine
        return not self.intake.waiting() if engine is None else engine.settled

    @property
    def unready(self) -> str | None:
        """As `Agent.unready`."""
        engine = self.engine
        if self._closed:
            return "the agent is closed"
        if engine is None:
            return "the agent is not started"
        return engine.unready or self.intake.refusing

    def reload(self, settings: Settings) -> list[str]:
        """As `Agent.reload`."""
        folder = settings.agent.data_dir
        folder = default_data_dir(os.environ) if folder is None else folder.absolute()
        after = _in_folder(settings, folder)
        todo = plan(_in_folder(self.described or self._as_made(settings), self._data_dir), after)
        todo.apply(self._destinations)
        self.described = todo.settings
        self._exit_timeout = todo.settings.agent.exit_timeout
        self._intake_settings = todo.settings.intake
        self._delivery_settings = todo.settings.delivery
        engine = self.engine
        if engine is not None:
            engine.tune(self._intake_settings, self._delivery_settings, todo.mended)
        return todo.restart

    def _as_made(self, settings: Settings) -> Settings:
        """The settings of an agent that was made by hand: what its destinations are cannot be compared."""
        return Settings(
            agent=settings.agent,
            intake=self._intake_settings,
            spool=self._spool_settings,
            delivery=self._delivery_settings,
            destinations={},
        )


def _in_folder(settings: Settings, folder: Path) -> Settings:
    agent = msgspec.structs.replace(settings.agent, data_dir=folder)
    return msgspec.structs.replace(settings, agent=agent)
