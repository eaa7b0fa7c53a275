"""Pictures of a run for the README, as SVG; without matplotlib, none."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import Results

FOLDER = Path(__file__).parent
_APART = ("nothing", "per_agent, to nowhere")  # yardsticks, which do less than the others
_OURS, _THEIRS = "#2a6f97", "#b8b8b8"


def draw(results: Results) -> list[Path]:
    """The pictures of what *results* hold. Raises `ImportError` where matplotlib is not installed."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "per_agent"  # the same figures make the same file
    mpl.rcParams["svg.fonttype"] = "none"  # text stays text
    made = [
        _bars(results, "caller.svg", "One call at 20,000 a second, p99.9", "µs", "caller.paced", "p999"),
        _bars(
            results,
            "delivered.svg",
            "From the call to the upstream",
            "events/s",
            "throughput.delivered",
            "rate",
        ),
    ]
    return [path for path in made if path is not None]


def _bars(results: Results, file: str, title: str, unit: str, table: str, column: str) -> Path | None:
    """One bar for each row, on a logarithmic scale, per_agent first."""
    from matplotlib.figure import Figure

    rows = [row for row in results.of_table(table) if row.figures.get(column) and row.subject not in _APART]
    if not rows:
        return None
    names = [row.subject for row in reversed(rows)]
    values = [row.figures[column] for row in reversed(rows)]
    figure = Figure(figsize=(8, 0.32 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(names, values, color=_colours(names), log=True)
    axes.bar_label(bars, [f"{value:,.0f}" for value in values], padding=3, fontsize=8)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(f"{unit}, logarithmic", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    path = FOLDER / file
    figure.savefig(path, metadata={"Date": None})
    return path


def _colours(names: Sequence[str]) -> list[str]:
    return [_OURS if name.startswith("per_agent") else _THEIRS for name in names]
