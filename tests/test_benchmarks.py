"""`python -m benchmarks` measures, says what it cannot measure, and the README shows what it found."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from benchmarks import endurance, show
from benchmarks.__main__ import RESULTS
from benchmarks.plan import Column, Row, Table, row
from benchmarks.processes import Sink, measured
from benchmarks.reach import judged
from benchmarks.results import Results

ROOT = Path(__file__).parents[1]


def benchmarks(*arguments, timeout=60):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_the_readme_shows_the_recorded_results():
    assert show.section(Results.load(RESULTS)) in (ROOT / "README.md").read_text()


def test_each_goal_has_a_figure_in_the_recorded_results():
    assert [each.goal.what for each in judged(Results.load(RESULTS)) if each.found is None] == []


def test_a_figure_is_held_against_its_goal():
    slow = Row("guest.import", "per_agent", {"took": 151.0})
    quick = Row("guest.host", "per_agent", {"idle": 0.1})
    verdicts = {each.goal.what: each.verdict for each in judged(Results("", {}, {}, {}, [slow, quick]))}
    assert verdicts["import"] == "not reached"
    assert verdicts["idling"] == "reached"
    assert verdicts["start with a backlog"] == "not measured"


def test_what_is_not_installed_or_fails_is_a_row_that_says_so():
    table = Table("t", "", "", (Column("took", "ms"),))
    assert row(table, "a", measured("imported:imported", module="not_there")).note == "not installed"
    failed = row(table, "a", measured("imported:imported", nothing_like_it=1))
    assert failed.note.startswith("failed: TypeError")
    assert not failed.figures


def test_a_measurement_that_does_not_end_is_ended():
    with Sink(None) as silent:
        address = {"address": silent.port, "before": "GET /", "after": " HTTP/1.1\r\n\r\n", "seconds": 0.1}
        assert measured("blaster:blast", timeout=2, **address)["failed"] == "took more than 2 s"


def test_the_load_generator_counts_what_the_server_answered():
    with Sink() as sink:
        before, after = "GET /user-", " HTTP/1.1\r\nHost: x\r\n\r\n"
        found = measured(
            "blaster:blast",
            address=sink.port,
            before=before,
            after=after,
            seconds=0.3,
            connections=3,
            rate=200,
        )
        assert sink.events() >= found["answers"] > 0


def test_an_area_that_is_not_there_is_refused_with_those_that_are():
    done = benchmarks("--only", "caller,nothing")
    assert done.returncode == 2
    assert "no area nothing" in done.stderr
    assert all(area in done.stderr for area in show.AREAS)


def test_endurance_records_counts_and_compares():
    with tempfile.TemporaryDirectory() as folder:  # a socket's path is short
        options = ["--minutes", "0.05", "--rate", "500", "--folder", folder]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.endurance", *options],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.stdout, done.stderr
        assert done.returncode in (0, 1)  # in three seconds, a process still makes itself at home
        assert list(Path(folder).iterdir()) == []
    lines = done.stdout.splitlines()
    assert lines[0].startswith("minutes ")
    assert [line.split(maxsplit=1)[1].rpartition(": ")[0] for line in lines[-6:]] == ["program"] * 3 + [
        "sidecar"
    ] * 3


def test_endurance_compares_the_last_quarter_with_the_second():
    looks = [endurance.Process(50.0 + n, 10, 4) for n in range(40)]
    assert endurance.compared(looks) == [("resident", 64.5, 84.5), ("descriptors", 10, 10), ("threads", 4, 4)]


@pytest.mark.slow
def test_an_area_is_measured_and_its_figures_are_written(tmp_path):
    out = tmp_path / "results.json"
    done = benchmarks(
        "--quick", "--only", "backlog", "--folder", str(tmp_path), "--out", str(out), timeout=170
    )
    assert done.returncode == 0, done.stderr
    assert "Events that wait" in done.stdout
    assert "start with a backlog" in done.stdout
    figures = json.loads(out.read_text())["rows"][0]["figures"]
    assert figures["back"] > 50
    assert list(tmp_path.iterdir()) == [out]
