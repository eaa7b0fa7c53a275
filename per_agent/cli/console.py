"""What is printed: answers on stdout, as a table or as JSON; messages on stderr, one line each.

What comes from upstreams and events is shown, never interpreted: neither as markup nor as control sequences
of the terminal.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.table import Table
from rich.text import Text

from per_agent.event import iso

_WIDE: Final = 1000  # columns where nobody's terminal limits them: what is piped to grep must not be wrapped
_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB")

_encode_json = msgspec.json.Encoder(decimal_format="number", enc_hook=str).encode


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command, as for every other print."""
        raise  # noqa: PLE0704  (called while the BrokenPipeError is handled)


def stdout() -> Console:
    """The console for answers."""
    return _console(stderr=False)


def stderr() -> Console:
    """The console for progress and messages."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _WIDE
    return _Console(stderr=stderr, width=width, markup=False, highlight=False, emoji=False)


def say(message: str) -> None:
    """One line on stderr."""
    sys.stdout.flush()  # so that both streams keep their order where they are one
    sys.stderr.write(f"per-agent: {plain(message)}\n")


def show(line: str = "") -> None:
    """One line of text on stdout."""
    sys.stdout.write(f"{plain(line)}\n")


def show_json(value: Any) -> None:
    """*value* on stdout, for machines: UTF-8 whatever the terminal speaks."""
    sys.stdout.flush()
    sys.stdout.buffer.write(msgspec.json.format(_encode_json(value), indent=2) + b"\n")
    sys.stdout.buffer.flush()


def show_record(value: Any) -> None:
    """*value* on stdout as one line of NDJSON."""
    sys.stdout.buffer.write(_encode_json(value) + b"\n")


class Sheet(Table):
    """A table whose heading is as wide as it needs; a table's own title is folded to the table's width."""

    def __init__(self, heading: str, footing: str = "") -> None:
        super().__init__()
        self._heading = Text(plain(heading), "bold")
        self._footing = Text(plain(footing), "dim")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._heading
        yield from super().__rich_console__(console, options)
        if self._footing:
            yield self._footing

    def row(self, *cells: object, style: str | None = None) -> None:
        """Add a row: numbers are grouped, what is missing is a dash, the rest is shown as it is."""
        shown = (cell if isinstance(cell, Text) else Text(plain(_text(cell))) for cell in cells)
        self.add_row(*shown, style=style)


def table(
    heading: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, footing: str = ""
) -> Sheet:
    """A table; a column whose name ends with `#` holds numbers."""
    made = Sheet(heading, footing)
    for column in columns:
        justify: JustifyMethod = "right" if column.endswith("#") else "left"
        made.add_column(column.rstrip("#"), justify=justify, overflow="fold")
    for row in rows:
        made.row(*row)
    return made


def _text(value: object) -> str:
    """*value* as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def plain(words: str) -> str:
    """*words* in one line, with whatever a terminal would take for a command written out."""
    if words.isprintable():
        return words
    return "".join(each if each.isprintable() else _written_out(each) for each in words)


def _written_out(character: str) -> str:
    return " " if character.isspace() else character.encode("unicode_escape").decode()


def count(number: int, noun: str) -> str:
    """`1 event`, `2,000 events`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def moment(seconds: float) -> str:
    """Epoch *seconds* as people read them, in UTC."""
    return iso(seconds)[:19].replace("T", " ") + "Z"


def span(seconds: float) -> str:
    """A length of time in its two largest units."""
    whole = max(0, round(seconds))
    for unit, name, smaller, its_name in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // smaller} {its_name}"
    return f"{whole} s"


def size(number: int) -> str:
    """*number* of bytes in its unit."""
    amount, unit = float(number), 0
    while amount >= 1024 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{number} bytes" if unit == 0 else f"{amount:.1f} {_UNITS[unit]}"
