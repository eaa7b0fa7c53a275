"""What a soak left on the disks, read: what returned, what arrived where, the books, the dead letters."""

import json
import sqlite3
import struct
import subprocess
import sys
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from per_agent import Ledger
from soak import plan
from soak.stage import FOLDERS

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Act:
    """One event as one place acted on it. `at` is in epoch seconds, None where the place takes no time."""

    name: str
    kind: str
    digest: str
    at: float | None
    identifier: str | None


@dataclass
class Evidence:
    """All that the verdict is about.

    Attributes:
        returned: for each producer's thread, how many of its calls returned.
        answered: names that a sidecar answered for; asked: all that were sent to one.
        resent: for each sidecar, how many events were sent to it again.
        places: what was acted on, by the place that did: "per", "payment_kit", "ledger a" …
        counted: what each ledger says that it counted: activities and meter events.
        books: for each data folder and destination, the counts of `per-agent books --json`.
        dead: for each folder, lane and name of each dead letter that there was.
        requeued: those of `dead` that were sent again at the end.
        saw: what the oracle did on purpose, or saw.
        run: what the soak says of itself.
        wrong: what went wrong besides.
    """

    seed: int
    run: dict[str, Any]
    returned: dict[str, int] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)
    resent: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[Act]] = field(default_factory=dict)
    counted: dict[str, tuple[int, int]] = field(default_factory=dict)
    books: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    dead: dict[str, Counter[tuple[str, str]]] = field(default_factory=dict)
    requeued: dict[str, Counter[tuple[str, str]]] = field(default_factory=dict)
    saw: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def gather(folder: Path) -> Evidence:
    """Read what the soak in *folder* left."""
    run = json.loads((folder / "run.json").read_text())
    found = Evidence(run["seed"], run, wrong=list(run["wrong"]))
    _calls(folder, found)
    _oracle(folder / "upstream-score.ndjson", found)
    for group in "abd":
        _ledger(folder / FOLDERS[group] / "ledger.db", f"ledger {group}", found)
    for group, place in FOLDERS.items():
        _books(group, folder / place, found)
    found.dead = _letters(folder / "purged", unique=True)
    found.requeued = _letters(folder / "lying")
    for group, letters in found.requeued.items():
        # One that was seen lying by who then failed to purge it, was noted twice.
        found.dead[group] = (found.dead[group] - letters) + letters
    logs = [*(folder / "logs").iterdir(), folder / "b/log", folder / "d/log"]
    for log in logs:
        text = log.read_text(errors="replace")
        if "Traceback" in text:
            found.wrong.append(f"{log.name} holds a traceback: {text[text.index('Traceback') :][-400:]!r}")
    return found


def _calls(folder: Path, found: Evidence) -> None:
    for notes in (folder / "notes").iterdir():
        for thread, count in enumerate(struct.unpack(f"<{plan.THREADS}Q", notes.read_bytes())):
            found.returned[f"{notes.name}.{thread}"] = count
    for prefix, count in found.run["fresh"].items():
        if prefix[0] in "ac":
            found.returned[prefix] = count
        else:
            names = {f"{prefix}.{n}" for n in range(count)}
            found.answered |= names
            found.asked |= names
    clients = json.loads((folder / "clients.json").read_text())
    found.answered.update(clients["answered"])
    found.asked.update(clients["asked"])
    found.resent = clients["resent"]
    found.wrong += clients["strange"]


def _oracle(score: Path, found: Evidence) -> None:
    places: dict[str, list[Act]] = {"per": [], "payment_kit": []}
    for line in score.read_text().splitlines():
        said = json.loads(line)
        match said.get("k"):
            case "a":
                places["per"].append(Act(said["n"], "activity", said["d"], None, None))
            case "m":
                places["payment_kit"].append(Act(said["n"], "meter", said["d"], said["t"], said["i"]))
            case _:
                found.saw[said["x"]] += 1
    found.places |= places


def _ledger(file: Path, place: str, found: Evidence) -> None:
    acts = []
    with closing(sqlite3.connect(file)) as database:
        for name, billing, kind, at in database.execute(
            "SELECT user_id, billing_id, activity_type, at FROM member JOIN audience ON audience.id = member.audience"
            " LEFT JOIN activity ON activity.audience = member.audience AND activity.number = member.number"
        ):
            fields = {"billing": billing, "type": kind}
            acts.append(Act(name, "activity", plan.digest(fields), None if at is None else at / 1000, None))
        acts += map(
            _meter_act,
            database.execute(
                "SELECT identifier, event_name, livemode, customer_id, subscription_id, value, timestamp,"
                " meter_event.metadata, source_data FROM meter_event JOIN meter ON meter.number = meter_event.meter"
                " JOIN account ON account.id = meter_event.account"
            ),
        )
    found.places[place] = acts
    ledger = Ledger(file)
    found.counted[place] = ledger.totals()
    ledger.close()


def _meter_act(row: tuple[Any, ...]) -> Act:
    identifier, event_name, livemode, customer, subscription, value, at, metadata, source_data = row
    read = plan.parsed(metadata)
    fields = {
        "event_name": event_name,
        "customer": customer,
        "subscription": subscription or None,
        "value": value,
        "metadata": read,
        "source_data": plan.parsed(source_data),
        "livemode": bool(livemode),
    }
    named = identifier if isinstance(identifier, str) else None
    return Act((read or {}).get("name", "?"), "meter", plan.digest(fields), at, named)


def _books(group: str, data_dir: Path, found: Evidence) -> None:
    command = [sys.executable, "-m", "per_agent.cli", "books", "--json", "--data-dir", str(data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    if done.returncode != 0:
        found.wrong.append(f"per-agent books exits {done.returncode} for {group}: {done.stderr}{done.stdout}")
    found.books[group] = json.loads(done.stdout)["destinations"] if done.stdout else {}


def _letters(file: Path, *, unique: bool = False) -> dict[str, Counter[tuple[str, str]]]:
    letters: dict[str, Counter[tuple[str, str]]] = {group: Counter() for group in FOLDERS}
    for line in file.read_text().splitlines() if file.exists() else ():
        group, lane, name = line.split(" ", 2)
        letters[group][lane, name] = 1 if unique else letters[group][lane, name] + 1
    return letters
