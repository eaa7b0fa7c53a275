"""The verdict: nothing missing, doubled, invented or changed, the books exact, and enough seen to mean something."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from soak import plan
from soak.evidence import Act, Evidence
from soak.watch import grown

LEDGER: Final = {"a": "ledger a", "b": "ledger b", "c": "ledger b", "d": "ledger d"}
UPSTREAM: Final = {"activity": "per", "meter": "payment_kit"}
SPOOLS: Final = 256 * 1024
"""Bytes that the spools and journals of a drained folder may take, whatever went through: an empty one has 28 KiB."""
MUST_SEE: Final = (
    "500", "503", "429", "401", "cut before", "cut after", "silent", "slow", "truncated", "page",
    "ambiguous", "duplicate", "meter asleep", "poison refused by Per", "poison refused by Payment Kit",
)  # fmt: skip
MUST_DEAL: Final = (
    "producer killed", "producer killed at its start", "sidecar killed", "upstream killed", "frozen",
)  # fmt: skip
PROVES: Final = 30.0
"""Seconds from which on a run must have seen all of these."""


@dataclass
class Verdict:
    """What was found. Each list holds sentences."""

    seed: int
    accepted: int = 0
    faults: int = 0
    repeats: int = 0
    """At Per, which has no identifier: allowed, since it counts unique users."""
    missing: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    invented: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    books: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    @property
    def findings(self) -> list[str]:
        parts = (self.wrong, self.missing, self.doubled, self.invented, self.changed, self.books)
        return [words for part in parts for words in part]

    @property
    def kept(self) -> bool:
        return not self.findings and not self.unseen

    @property
    def line(self) -> str:
        word = "not kept" if self.findings else "proved too little" if self.unseen else "kept"
        books = "books agree" if not self.books else f"{len(self.books)} wrong in the books"
        wrong = f", {len(self.wrong)} else wrong" if self.wrong else ""
        unseen = f", never seen: {', '.join(self.unseen)}" if self.unseen else ""
        return (
            f"{word}: {self.accepted:,} accepted, {len(self.missing):,} missing, {len(self.doubled):,} doubled,"
            f" {len(self.invented):,} invented, {len(self.changed):,} changed, {books}{wrong}{unseen},"
            f" {self.faults:,} faults (seed {self.seed})"
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"kept": self.kept, "line": self.line, **self.__dict__}


def judge(found: Evidence) -> Verdict:
    """Compare what was accepted with what arrived."""
    verdict = Verdict(found.seed, faults=sum(found.run["faults"].values()) + _troubles(found))
    accepted = _accepted(found)
    verdict.accepted = len(accepted)
    arrived = {place: Counter(act.name for act in acts) for place, acts in found.places.items()}
    verdict.missing += _missing(found, accepted, arrived)
    verdict.repeats = sum(count - 1 for count in arrived["per"].values())
    for place, acts in found.places.items():
        if place != "per":
            verdict.doubled += [
                f"{name} was acted on {count} times by {place}"
                for name, count in arrived[place].items()
                if count > 1
            ]
        for act in acts:
            if not _was_recorded(found, place, act):
                verdict.invented.append(f"{act.name} at {place} was never recorded")
            elif words := _changed(found, act):
                verdict.changed.append(f"{act.name} at {place}: {words}")
    verdict.changed += _disagreeing(found)
    for place, counted in found.counted.items():
        kinds = Counter({act.name: act.kind for act in found.places[place]}.values())
        if counted != (kinds["activity"], kinds["meter"]):
            verdict.doubled.append(f"{place} counted {counted}, of {dict(kinds)} events")
    verdict.books += _books(found, arrived)
    verdict.wrong += found.wrong + _resources(found)
    verdict.unseen = _unseen(found)
    return verdict


def _accepted(found: Evidence) -> set[str]:
    returned = {f"{thread}.{n}" for thread, count in found.returned.items() for n in range(count)}
    return returned | found.answered


def _places(planned: plan.Planned) -> tuple[str, str]:
    return UPSTREAM[planned.kind], LEDGER[planned.name[0]]


def _troubles(found: Evidence) -> int:
    return sum(count for what, count in found.saw.items() if what not in ("ambiguous", "duplicate"))


def _missing(found: Evidence, accepted: set[str], arrived: dict[str, Counter[str]]) -> Iterator[str]:
    # One that was in hand when its process died was accepted or not, but everywhere alike.
    half = {name for names in arrived.values() for name in names} - accepted
    for name in [*accepted, *(name for name in half if plan.NAME.fullmatch(name))]:
        planned = plan.event(found.seed, name)
        for place in _places(planned):
            if name in arrived[place]:
                continue
            if place in ("per", "payment_kit") and planned.poison:
                group = {"c": "b"}.get(name[0], name[0])
                key = place, name
                if not found.dead[group][key]:
                    yield f"{name} is neither at {place} nor a dead letter"
                elif found.requeued[group][key]:
                    yield f"{name} was requeued and is not at {place}"
            elif name not in accepted:
                yield f"{name} is not at {place}, but elsewhere"
            else:
                yield f"{name} is not at {place}"


def _was_recorded(found: Evidence, place: str, act: Act) -> bool:
    if plan.NAME.fullmatch(act.name) is None:
        return False
    planned = plan.event(found.seed, act.name)
    if planned.kind != act.kind or place not in _places(planned):
        return False
    thread, _, number = act.name.rpartition(".")
    # One more than returned: the call that was under way when the process died.
    return act.name in found.asked or int(number) <= found.returned.get(thread, -1)


def _changed(found: Evidence, act: Act) -> str:
    planned = plan.event(found.seed, act.name)
    if act.digest != planned.digest:
        return "its content is another"
    if planned.identifier not in (None, act.identifier):
        return f"its identifier is {act.identifier!r}"
    if act.at is None:
        return ""
    if planned.at is None:
        within = found.run["began"] - 1 <= act.at <= found.run["ended"]
        return "" if within else f"its time is {act.at}"
    expected = int(planned.at) if act.kind == "meter" else round(planned.at * 1e6) // 1000 / 1000
    return "" if act.at == expected else f"its time is {act.at} and not {expected}"


def _disagreeing(found: Evidence) -> Iterator[str]:
    """Both places of a meter event must have it at one time. A client that repeats itself may give it two."""
    upstream = {act.name: act.at for act in found.places["payment_kit"]}
    for place in ("ledger a", "ledger b", "ledger d"):
        for act in found.places[place]:
            if act.kind == "meter" and act.name[0] in "acd" and upstream.get(act.name, act.at) != act.at:
                yield f"{act.name} is of {act.at} at {place}, and of {upstream[act.name]} at Payment Kit"


def _books(found: Evidence, arrived: dict[str, Counter[str]]) -> Iterator[str]:
    def at(place: str, groups: str) -> Counter[str]:
        return Counter({name: count for name, count in arrived[place].items() if name[0] in groups})

    for group, books in found.books.items():
        for lane, counts in books.items():
            where = f"{group}, {lane}"
            if counts["accepted"] != sum(
                counts[each] for each in ("delivered", "dead", "dropped", "pending")
            ):
                yield f"{where}: do not balance: {counts}"
            if counts["pending"] or counts["dropped"]:
                yield f"{where}: {counts['pending']} pending, {counts['dropped']} dropped"
    for group, groups in (("a", "a"), ("b", "bc"), ("d", "d")):
        for lane in ("per", "payment_kit", "ledger"):
            counts = found.books[group][lane]
            place = f"ledger {group}" if lane == "ledger" else lane
            purged = found.dead[group] - found.requeued[group]
            dead = sum(count for (where, _), count in purged.items() if where == lane)
            yield from _agree(found, group, lane, counts, at(place, groups), dead)
    delivered, came = found.books["c"]["sidecar"]["delivered"], len(at("ledger b", "c"))
    if delivered != came:
        yield f"c, sidecar: {delivered} delivered by the books, {came} arrived"
    for group in "abd":
        books = found.books[group]
        if books["ledger"]["accepted"] != books["per"]["accepted"] + books["payment_kit"]["accepted"]:
            yield f"{group}: the ledger's lane was not given what the two others were: {books}"


def _agree(
    found: Evidence, group: str, lane: str, counts: dict[str, int], arrived: Counter[str], dead: int
) -> Iterator[str]:
    """The books say exactly what arrived; a sidecar that was killed may have taken a repeat for a new event."""
    delivered, buried = counts["delivered"] - len(arrived), counts["dead"] - dead
    agrees = delivered == buried == 0
    if group == "b" and buried >= 0:
        # Each such repeat was answered as a duplicate, or acted on again where there is no identifier.
        repeats = {
            "per": arrived.total() - len(arrived),
            "payment_kit": found.saw["duplicate"],
            "ledger": counts["delivered"],  # what its lane was given is compared with the two others below
        }
        agrees = 0 <= delivered <= repeats[lane]
    if not agrees:
        yield f"{group}, {lane}: {counts} by the books, {len(arrived)} arrived, {dead} are dead"


def _resources(found: Evidence) -> list[str]:
    words = [
        f"the spools of {group} take {size:,} bytes, drained"
        for group, size in found.run["sizes"].items()
        if size > SPOOLS
    ]
    if found.run["seconds"] >= PROVES:
        words += grown(found.run["samples"])
    return words


def _unseen(found: Evidence) -> list[str]:
    if found.run["still"] or found.run["seconds"] < PROVES:
        return []
    known = unseen(found.saw, found.run["faults"])
    if not any(found.dead.values()):
        known.append("dead letters")
    if not any(found.resent.values()):
        known.append("unclear answers to clients")
    return known


def unseen(saw: Mapping[str, int], dealt: Mapping[str, int]) -> list[str]:
    """What a run that proves anything must have seen, and this one has not."""
    return [what for what in MUST_SEE if not saw.get(what)] + [
        what for what in MUST_DEAL if not dealt.get(what)
    ]
