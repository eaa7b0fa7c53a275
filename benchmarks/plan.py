"""`Plan`: what one run is to do: how long, how much, where; and `Row`, `Table`, the shape of what it finds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Plan:
    """One run. *seconds* is for each measurement that has no count of its own; *tell* says what is under way."""

    seconds: float
    quick: bool
    full: bool
    folder: Path
    tell: Callable[[str], None]

    def count(self, usual: int, full: int | None = None) -> int:
        """*usual*; *full* of a full run, where that is more, and a fifth of *usual* of a quick one."""
        if self.full and full is not None:
            return full
        return usual // 5 if self.quick else usual


@dataclass(frozen=True)
class Row:
    """What was measured of one subject: *figures* by column; *note* says why there are none."""

    table: str
    subject: str
    figures: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Column:
    key: str
    heading: str
    digits: int = 0


@dataclass(frozen=True)
class Table:
    """How the rows of *key* are shown. *about* says what was done, in a sentence or two."""

    key: str
    title: str
    about: str
    columns: tuple[Column, ...]


def row(table: Table, subject: str, found: Mapping[str, Any]) -> Row:
    """The row of *table* for what a child process *found*."""
    if "not_installed" in found:
        return Row(table.key, subject, note="not installed")
    if "failed" in found:
        return Row(table.key, subject, note=f"failed: {found['failed']}")
    return Row(
        table.key, subject, {column.key: found[column.key] for column in table.columns if column.key in found}
    )
