"""NDJSON, line by line: bounded memory whatever comes, and the number of each line that is no event."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import DecimalException
from typing import IO, Any, Final

import msgspec
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from per_agent.cli.console import say, stderr
from per_agent.cli.exits import ExitCode, Stop
from per_agent.event import RECORDS

MAX_LINE_BYTES: Final = 1024 * 1024  # an event takes 64 KiB; escapes may make its JSON several times as long
_BOM: Final = b"\xef\xbb\xbf"


class Line(msgspec.Struct, frozen=True):
    """One line that is not blank.

    Attributes:
        number: from 1.
        end: the bytes read so far, this line included.
        record: what it holds; None where it holds no JSON.
        problem: what is wrong with it, or None.
    """

    number: int
    end: int
    record: Any = None
    problem: str | None = None


def lines(source: IO[bytes]) -> Iterator[Line]:
    """The lines of *source* that are not blank, as they come. Raises only what reading raises."""
    number = end = 0
    while raw := source.readline(MAX_LINE_BYTES + 1):
        number += 1
        end += len(raw)
        if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
            while not raw.endswith(b"\n") and (raw := source.readline(MAX_LINE_BYTES)):
                end += len(raw)
            yield Line(number, end, problem=f"is longer than {MAX_LINE_BYTES:,} bytes")
            continue
        if number == 1:
            raw = raw.removeprefix(_BOM)
        if raw.strip():
            record, problem = _decoded(raw)
            yield Line(number, end, record, problem)


def _decoded(raw: bytes) -> tuple[Any, str | None]:
    try:
        return RECORDS.decode(raw), None
    except UnicodeDecodeError:
        return None, "is not UTF-8"
    except RecursionError:
        return None, "is nested too deeply"
    except DecimalException:
        return None, "holds a number that is too large"
    except msgspec.MsgspecError as error:
        try:
            raw.decode()
        except UnicodeDecodeError:
            return None, "is not UTF-8"
        return None, f"is not JSON: {error}"


@contextmanager
def opened(file: str) -> Iterator[IO[bytes]]:
    """The file of this name, or stdin for `-`. Raises `Stop` where there is none."""
    if file == "-":
        if sys.stdin.isatty():
            say("reading events from the terminal, one JSON object a line; end with Ctrl-D")
        yield sys.stdin.buffer
        return
    try:
        source = open(file, "rb")  # noqa: SIM115, PTH123  (closed below; a name from the command line)
    except FileNotFoundError:
        raise Stop(
            ExitCode.USAGE, f"{file}: no such file; add takes activity, meter, a file, or - for stdin"
        ) from None
    with source:
        yield source


@contextmanager
def progress(source: IO[bytes]) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, where somebody sees it: over a file's bytes, or counting a pipe's lines."""
    console = stderr()
    if not console.is_terminal:
        yield lambda *_: None
        return
    size = os.fstat(source.fileno()).st_size or None
    columns = (TextColumn("{task.fields[lines]:,} lines"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=size, lines=0)
        yield lambda number, end: bar.update(task, completed=end, lines=number)
