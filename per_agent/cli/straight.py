"""Events straight into the spool, where no sidecar runs: an agent at work for as long as the command."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from per_agent.agent import Agent
from per_agent.agent.overview import overview
from per_agent.cli.call import running
from per_agent.cli.console import say
from per_agent.cli.tally import Outcome, Tally, Wait
from per_agent.errors import SpoolError
from per_agent.event import Receipt
from per_agent.settings import Settings

_CLOSE: Final = 2.0  # seconds that delivering may take, once the events are stored


class Straight:
    """Takes events into the spool of *agent*, and delivers what can be delivered in a short time.

    *patience* is how long what is waited for may take, in seconds; None: no limit.
    """

    def __init__(self, agent: Agent, settings: Settings, wait: Wait, patience: float | None) -> None:
        self._agent = agent
        self._settings = settings
        self._wait = wait
        self._tally = Tally(Receipt.delivered if wait is Wait.DELIVERED else Receipt.stored, patience)

    def add(self, number: int, record: Any) -> str:  # noqa: ARG002  (where it stood matters to others)
        """Take the event that *record* describes; its identifier. Raises as `Agent.add_record` does."""
        receipt = self._agent.add_record(record)
        self._tally.add(receipt)
        return receipt.id

    def rejected(self) -> Iterator[tuple[int, str]]:
        """None: what is no event is known at once."""
        return iter(())

    def finish(self) -> Outcome:
        """Wait for what is to be waited for, and close the agent."""
        tally = self._tally
        tally.settle()
        trouble = (self._agent.status().get("spool") or {}).get("trouble")
        self._agent.close(0.0 if self._wait is Wait.DELIVERED else _CLOSE)
        tally.close()
        return Outcome(
            accepted=tally.accepted,
            stored=tally.stored,
            delivered=tally.delivered,
            refused=tally.refused,
            refusals=tally.refusals,
            seen=self._look(),
            trouble=trouble,
            keeper="the next agent on this folder",
        )

    def _look(self) -> dict[str, Any] | None:
        data_dir = self._settings.agent.data_dir
        assert data_dir is not None  # `load` has filled it in
        try:
            return overview(data_dir, tuple(self._settings.destinations)).as_dict(time.time())
        except SpoolError as error:  # another one than ours: the events are stored all the same
            say(str(error))
            return None


@contextmanager
def straight(settings: Settings, wait: Wait, patience: float | None) -> Iterator[Straight]:
    """An agent of *settings* that takes events. Raises `SpoolError` when no spool can be opened."""
    with running(settings) as agent:
        yield Straight(agent, settings, wait, patience)
