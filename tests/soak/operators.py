"""Who looks after the data folders while it storms: purges dead letters, and has the books balanced, at any moment."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from per_agent import Agent, SpoolError
from per_agent.event import Activity, decode
from soak import plan
from soak.stage import Stage


class Operator:
    """Works in a thread of its own. What it finds to be wrong, it adds to *wrong*, in words."""

    def __init__(self, stage: Stage, wrong: list[str], say: Callable[[str], None]) -> None:
        self._stage, self._wrong, self._say = stage, wrong, say
        self._thread = ThreadPoolExecutor(1, "operator")

    def purge(self, group: str) -> None:
        """Purge the dead letters of a folder, after writing them down."""
        self._thread.submit(self._guarded, self._purge, group)

    def audit(self, group: str) -> None:
        """Look whether the books of a folder balance."""
        self._thread.submit(self._guarded, self._balance, group)

    def end(self) -> None:
        """Wait until all is done."""
        self._thread.shutdown()

    def _purge(self, group: str) -> None:
        letters = Agent(self._stage.data_dir(group)).dead_letters
        found = list(letters)
        # Noted first: of a request that is not answered nobody knows whether it was followed.
        with (self._stage.folder / "purged").open("a") as file:
            for each in found:
                file.write(f"{group} {each.lane} {letter_name(each.letter.event)}\n")
        letters.purge(found)

    def _balance(self, group: str) -> None:
        for lane, counts in Agent(self._stage.data_dir(group)).books().items():
            if not counts.balanced:
                self._wrong.append(f"the books of {group} did not balance meanwhile: {lane}: {counts}")

    def _guarded(self, do: Callable[[str], None], group: str) -> None:
        try:
            do(group)
        except SpoolError as error:  # its holder is frozen, or was killed before it answered
            self._say(f"the operator was told: {error}")
        except Exception as error:
            self._wrong.append(f"looking after {group} failed: {error!r}")


def letter_name(encoded: bytes) -> str:
    """The name of the event of a dead letter."""
    event = decode(encoded)
    return event.user_id if isinstance(event, Activity) else str(plan.parsed(event.metadata)["name"])
