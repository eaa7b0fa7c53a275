"""`Teller`: tells the demo as it goes: numbered steps, and below them what waits where, live on a terminal."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from per_agent.cli.console import count, plain, span
from per_agent.cli.demo.upstream import Upstream
from per_agent.cli.demo.watch import Look, Queue

_NOTE_AFTER: Final = 2.5  # seconds, where no terminal shows it live; then after twice as many each time
_A_QUEUE: Final = 1.0  # seconds; what has waited for less is on its way
_CURVE: Final = 50  # columns
_HEIGHTS: Final = "▁▂▃▄▅▆▇█"
_STATES: Final = {"open": "green", "retrying": "yellow", "halted": "red"}
_INDENT: Final = (0, 0, 0, 3)
_BESIDE: Final = 64  # columns that the live display takes beside a state


class Teller:
    """Tells on *console*. Where that is no terminal, a line now and then stands for the live display."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._steps = 0
        self._live: Live | None = None
        self._note_at = 0.0
        self._pause = _NOTE_AFTER

    def step(self, words: str) -> None:
        """What happens next, or just happened."""
        self._steps += 1
        self._say(Text(f"{self._steps}.", "bold cyan"), Text(words))
        self._pause = _NOTE_AFTER
        self._note_at = time.monotonic() + self._pause

    def note(self, words: str) -> None:
        """What is worth knowing about the step."""
        self._say(Text("  "), Text(words, "dim"))

    def curve(self, waited: Sequence[int]) -> None:
        """How the queue grew and drained, on one line."""
        if not self.console.options.ascii_only:
            most = f" {max(waited, default=0):,} waited at most"
            self._say(Text("  "), Text.assemble((_curve(waited), "cyan"), most))

    @contextmanager
    def live(self) -> Iterator[None]:
        """What is shown within stays below the steps, on a terminal, and is gone afterwards."""
        if not self.console.is_terminal or self.console.is_dumb_terminal:
            yield
            return
        with Live(console=self.console, auto_refresh=False, transient=True) as self._live:
            try:
                yield
            finally:
                self._live.update(Text(), refresh=True)
        self._live = None

    def show(self, look: Look, waited: Sequence[int], upstream: Upstream, events: int) -> None:
        """What there is to see at this moment; *events* are to be recorded in all."""
        if self._live is not None:
            view = _view(look, waited, upstream, events, self.console.width)
            self._live.update(view, refresh=True)
        elif look.oldest > _A_QUEUE and time.monotonic() > self._note_at:
            self._pause *= 2
            self._note_at = time.monotonic() + self._pause
            queues = ", ".join(f"{queue.name} {queue.pending:,}" for queue in look.application)
            self.note(
                f"{count(look.waiting, 'event')} on the disk ({queues}), the oldest for {span(look.oldest)};"
                f" the upstream is {'gone' if upstream.is_gone else 'there'}"
            )

    def _say(self, mark: Text, words: Text) -> None:
        if self.console.is_terminal:
            line = Table.grid(padding=(0, 1, 0, 0))
            line.add_row(mark, words)
            self.console.print(line)
        else:  # what is piped to grep must not be wrapped
            self.console.print(Text(" ").join((mark, words)), soft_wrap=True)


def _view(look: Look, waited: Sequence[int], upstream: Upstream, events: int, width: int) -> RenderableType:
    recorded = Table.grid(padding=(0, 1))
    recorded.add_row(
        "recorded", ProgressBar(events, look.recorded, width=40), f"{look.recorded:,} of {events:,}"
    )
    queues = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    queues.add_column("on the disk of", no_wrap=True, min_width=24)
    queues.add_column("state", no_wrap=True, overflow="ellipsis", width=max(12, min(34, width - _BESIDE)))
    for name in ("pending", "oldest", "delivered"):
        queues.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    for queue in look.application:
        queues.add_row(*_cells(f"application: {queue.name}", _state(queue), queue))
    gone = Text(f"killed {span(upstream.gone)} ago", "bold red") if upstream.is_gone else None
    for queue in look.sidecar:
        queues.add_row(*_cells(f"upstream: {queue.name}", gone or _state(queue), queue))
    curve = Text.assemble("queue    ", (_curve(waited), "cyan"), f" {look.waiting:,}")
    return Padding(Group(Text(), recorded, queues, curve), _INDENT)


def _cells(name: str, state: Text, queue: Queue) -> list[str | Text]:
    oldest = "-" if queue.oldest is None else span(queue.oldest)
    return [name, state, f"{queue.pending:,}", oldest, f"{queue.delivered:,}"]


def _state(queue: Queue) -> Text:
    if queue.state is None:
        return Text("-")
    words = Text(queue.state, _STATES.get(queue.state, ""))
    return words if queue.state == "open" else words.append(f": {plain(queue.reason)}", "default")


def _curve(values: Sequence[int]) -> str:
    """*values* as heights, the highest of each column; as many columns as there is room for."""
    most, columns = max(values, default=0), min(len(values), _CURVE)
    if not most:
        return _HEIGHTS[0] * columns
    ends = [len(values) * at // columns for at in range(columns + 1)]
    tops = [max(values[first:last]) for first, last in pairwise(ends)]
    return "".join(_HEIGHTS[(top * (len(_HEIGHTS) - 1) + most - 1) // most] for top in tops)
