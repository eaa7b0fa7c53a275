"""Tables on a terminal, the goals, and the section of the README."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

from rich import box
from rich.console import Console
from rich.table import Table as Drawn
from rich.text import Text

from benchmarks import backlog, caller, guest, ledger, sidecar, throughput, upstream
from benchmarks.plan import Column, Row, Table
from benchmarks.reach import GOALS, Judged, judged
from benchmarks.results import Results

AREAS: dict[str, ModuleType] = {
    "caller": caller,
    "throughput": throughput,
    "upstream": upstream,
    "backlog": backlog,
    "sidecar": sidecar,
    "ledger": ledger,
    "guest": guest,
}
_README = Path(__file__).parents[1] / "README.md"
_BEGIN, _END = "<!-- written by `python -m benchmarks --readme` -->", "<!-- until here -->"
_STYLES = {True: "green", False: "red", None: "dim"}


def show_area(console: Console, area: str, rows: Sequence[Row]) -> None:
    """The tables of *area*."""
    for table in AREAS[area].TABLES:
        found = [row for row in rows if row.table == table.key]
        if found:
            console.print(_drawn(table, found))
            console.print(Text(table.about, "dim"))
            console.print()


def _drawn(table: Table, rows: Sequence[Row]) -> Drawn:
    columns = [each for each in table.columns if any(each.key in row.figures for row in rows)]
    drawn = Drawn(box=box.SIMPLE_HEAD, title=table.title, title_justify="left", title_style="bold")
    drawn.add_column("")
    for column in columns:
        drawn.add_column(column.heading, justify="right")
    for row in rows:
        style = "bold" if row.subject.startswith("per_agent") else ""
        cells = [row.note, *[""] * (len(columns) - 1)] if row.note else _cells(row, columns)
        drawn.add_row(row.subject, *cells, style=style)
    return drawn


def _cells(row: Row, columns: Iterable[Column]) -> list[str]:
    return [_cell(row.figures.get(column.key), column.digits) for column in columns]


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def show_goals(console: Console, results: Results) -> None:
    drawn = Drawn(box=box.SIMPLE_HEAD, title="The goals", title_justify="left", title_style="bold")
    for heading in ("", "goal", "found", ""):
        drawn.add_column(heading, justify="right" if heading in ("goal", "found") else "left")
    found = [each for each in judged(results) if each.found is not None]
    for each in found:
        drawn.add_row(*_goal(each), style=_STYLES[each.is_reached])
    if found:
        console.print(drawn)
    if len(found) < len(GOALS):
        console.print(Text(f"{len(GOALS) - len(found)} goals were not measured in this run.", "dim"))


def _goal(each: Judged) -> tuple[str, str, str, str]:
    goal = each.goal
    return goal.what, f"{goal.bound} {goal.limit:,g} {goal.unit}", _found(each), each.verdict


def _found(each: Judged) -> str:
    return "-" if each.found is None else f"{each.found:,.{0 if each.found >= 100 else 2}f}"


# The README


def write_readme(results: Results) -> None:
    """Put the tables of *results* into the README, between the two marks. Raises `ValueError` without them."""
    text = _README.read_text()
    before, began, rest = text.partition(_BEGIN)
    _, ended, after = rest.partition(_END)
    if not (began and ended):
        raise ValueError(f"README.md does not hold {_BEGIN} and {_END}")
    _README.write_text(f"{before}{_BEGIN}\n{section(results)}{_END}{after}")


def section(results: Results) -> str:
    """What stands between the marks."""
    machine = results.machine
    kind = ", a quick run" if results.options.get("quick") else ""
    busy = f", with much else to do (load {machine['load']})" if machine["load"] > 1 else ""
    return (
        f"Measured in one run on {results.date[:10]}{kind}: {machine['processors']} processors "
        f"({machine['processor']}), Python {machine['python']}, {machine['system']}{busy}.\n\n"
        f"{_markdown(_PEERS, _peers(results))}\n"
        f"{_markdown(('', 'found'), _others(results))}\n"
    )


_PEERS = (
    "",
    "call p50",
    "p99.9",
    "timer late p99",
    "delivered",
    "CPU per million",
    "import",
    "exit, upstream silent",
)


def _peers(results: Results) -> list[tuple[str, ...]]:
    """A line for each of those whose call was measured."""
    lines: list[tuple[str, ...]] = []
    for name in ("per_agent", *(row.subject for row in results.of_table("caller.paced"))):
        if (name.startswith("per_agent") and lines) or name == "nothing":
            continue
        asked = (
            ("caller.paced", "p50", 1, "µs"),
            ("caller.paced", "p999", 0, "µs"),
            ("caller.slow", "late_p99", 1, "ms"),
            ("throughput.delivered", "rate", 0, "events/s"),
            ("throughput.delivered", "processor", 0, "s"),
            ("guest.import", "took", 0, "ms"),
            ("guest.exit", "silent", 0, "ms"),
        )
        cells = [
            _with_unit(results.figure(table, name, key), digits, unit) for table, key, digits, unit in asked
        ]
        lines.append((name, *cells))
    return lines


_OTHERS = (
    "accepted to stored",
    "one request",
    "sidecar",
    "memory",
    "start",
    "disk",
    "idling",
    "way out",
    "ledger",
)
"""How goals begin whose figures the README shows beside those that peers have, too."""


def _others(results: Results) -> list[tuple[str, str]]:
    shown = [
        each for each in judged(results) if each.found is not None and each.goal.what.startswith(_OTHERS)
    ]
    return [(each.goal.what, f"{_found(each)} {each.goal.unit}") for each in shown]


def _with_unit(value: float | None, digits: int, unit: str) -> str:
    return "" if value is None else f"{value:,.{digits}f} {unit}"


def _markdown(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [headings, ["---"] + ["---:"] * (len(headings) - 1), *lines]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
