"""A damaged spool is set aside, and another takes its place with all that can still be read of it.

Decision. The spool keeps its folder, its lock and its block ids; only its database is made anew, row by row,
each judged by its own checksum or form. The damaged files go to `<id>.damaged` beside it, as they were, for a
person; they are no spool, and nothing here ever deletes them. What the books say and no block holds is lost:
it is entered as dead, and told.

Exactly once, over a crash at any moment: the new database is built in `salvage`, and counts when that folder
is renamed to `salvaged`. Before that it is thrown away and built again; after that the rest is finished by
whoever holds the spool next. What is given up: room for a copy while it is made.
"""

import mmap
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from per_agent import failpoint
from per_agent.books import Books
from per_agent.errors import SpoolCorrupt
from per_agent.spool import audit, forks, wal
from per_agent.spool import block as blocks
from per_agent.spool.block import BlockId
from per_agent.spool.disk import FILE, Disk
from per_agent.spool.pages import Image, Row
from per_agent.spool.rows import fits
from per_agent.spool.transaction import END, KNOWN_LAYOUT, LAYOUT, SEQ
from per_agent.spool.witness import Witness

DAMAGED: Final = ".damaged"  # a folder's ending when damaged files were set aside in it
REPORT: Final = "report.json"
_BUILDING: Final = "salvage"
_BUILT: Final = "salvaged"
_AT_ONCE: Final = 64  # rows in one transaction
_FILES: Final = (FILE, f"{FILE}-wal", f"{FILE}-shm")


class Report(msgspec.Struct, frozen=True):
    """What became of a damaged spool.

    Attributes:
        why: what was found to be damaged.
        pending: for each lane, the events that are still to be delivered, all of them salvaged.
        lost: for each lane, the events known to be lost; None where the books could not be read either.
    """

    spool: str
    why: str
    aside: str
    pending: dict[str, int]
    lost: dict[str, int | None]

    @property
    def words(self) -> str:
        """In a sentence."""
        known = sum(count or 0 for count in self.lost.values())
        unknown = None in self.lost.values() or not self.lost
        lost = f"{known:,} are known to be lost" + (", and it is not known how many more" if unknown else "")
        return (
            f"spool {self.spool} was damaged ({self.why}): {sum(self.pending.values()):,} pending events were"
            f" salvaged, {lost}; the damaged files are set aside in {self.aside}"
        )


def replace(folder: Path, why: str, witness: Witness | None) -> Report:
    """Make the spool in *folder*, which is held and closed, anew. Raises `STORAGE_TROUBLE`: then nothing changed."""
    building = folder / _BUILDING
    shutil.rmtree(building, ignore_errors=True)
    with forks.section():
        disk = Disk(building)
        try:
            _copy(disk, folder)
            pending, lost = _balance(disk, witness)
            disk.shrink()
        finally:
            disk.disconnect()
    report = Report(folder.name, why, str(_aside(folder)), pending, lost)
    _write(building / REPORT, msgspec.json.encode(report))
    failpoint.reach("salvage reported")
    _sync(building)
    building.rename(folder / _BUILT)
    failpoint.reach("salvage built")
    _sync(folder)
    finish(folder)
    return report


def finish(folder: Path) -> None:
    """Do what is left of a replacement that was under way when its process died."""
    shutil.rmtree(folder / _BUILDING, ignore_errors=True)
    built = folder / _BUILT
    if not built.exists():
        return
    with suppress(FileNotFoundError):
        report = _report_in(built, folder)
        aside = Path(folder.parent, Path(report.aside).name)
        aside.mkdir(mode=0o700, exist_ok=True)
        if (built / FILE).exists():
            for name in _FILES:
                with suppress(FileNotFoundError):
                    (folder / name).rename(aside / name)
                    failpoint.reach("damaged file moved")
            (built / FILE).rename(folder / FILE)
            failpoint.reach("salvage moved")
            _sync(folder)
        (built / REPORT).rename(aside / REPORT)
        failpoint.reach("report moved")
        _sync(aside)
    shutil.rmtree(built)
    failpoint.reach("salvage removed")
    _sync(folder.parent)


def _report_in(built: Path, folder: Path) -> Report:
    """What was written when the new database was *built*; made anew where it is damaged. Raises `OSError`."""
    try:
        return msgspec.json.decode((built / REPORT).read_bytes(), type=Report)
    except msgspec.MsgspecError:
        place = built if (built / FILE).exists() else folder
        why = "the report of what was found is damaged itself"
        report = Report(folder.name, why, str(_aside(folder)), audit.pending(place) or {}, {})
        new = built / f"{REPORT}.new"
        new.unlink(missing_ok=True)
        _write(new, msgspec.json.encode(report))
        new.rename(built / REPORT)  # first of all, so that all that is set aside goes to one place
        return report


def reports(data_dir: Path) -> list[Report]:
    """What was set aside under *data_dir* and still lies there."""
    found = []
    for path in sorted((data_dir / "spools").glob(f"*{DAMAGED}")):
        with suppress(OSError, msgspec.MsgspecError):
            found.append(msgspec.json.decode((path / REPORT).read_bytes(), type=Report))
    return found


def _aside(folder: Path) -> Path:
    number = 1
    place = folder.with_name(folder.name + DAMAGED)
    while place.exists():
        number += 1
        place = folder.with_name(f"{folder.name}.{number}{DAMAGED}")
    return place


def _rows(folder: Path) -> Iterator[Row]:
    log = folder / f"{FILE}-wal"
    content = wal.read(log.read_bytes() if log.exists() else b"")
    file = folder / FILE
    if not file.exists() or not file.stat().st_size:
        yield from Image(b"", content).rows()
        return
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        yield from Image(pages, content).rows()


def _copy(disk: Disk, folder: Path) -> None:
    """All rows that are what they say, and none twice."""
    batch: list[tuple[str, bytes]] = []
    for row in _rows(folder):
        key = next((key for key in row.keys if fits(key, row.value)), None)
        if key is not None:
            batch.append((key, row.value))
        if len(batch) >= _AT_ONCE:
            _put(disk, batch)
            batch = []
    _put(disk, batch)


def _put(disk: Disk, batch: list[tuple[str, bytes]]) -> None:
    with disk.transaction():
        for key, value in batch:
            disk.set(key, value)
    failpoint.reach("rows salvaged")


def _balance(disk: Disk, witness: Witness | None) -> tuple[dict[str, int], dict[str, int | None]]:
    """Have the books say what lies there. For each lane, what is pending, and what is lost (None: not known)."""
    known = {} if witness is None else witness.books
    keys = disk.keys("l/", f"l/{END}", -1)
    lanes = sorted({key.split("/")[1] for key in keys} | set(known))
    seq = max(
        int.from_bytes(disk.get(SEQ) or b"", "big"),
        0 if witness is None else witness.seq,
        *map(_number, keys),
    )
    pending: dict[str, int] = {}
    lost: dict[str, int | None] = {}
    with disk.transaction():
        for lane in lanes:
            seq += 1
            pending[lane], lost[lane] = _balance_lane(disk, lane, known.get(lane), BlockId(seq))
        disk.set(SEQ, (seq + 1).to_bytes(8, "big"))
        disk.set(LAYOUT, KNOWN_LAYOUT)
    failpoint.reach("salvage balanced")
    return pending, lost


def _balance_lane(disk: Disk, lane: str, known: Books | None, mark: BlockId) -> tuple[int, int | None]:
    def keys(kind: str) -> list[str]:
        return disk.keys(f"l/{lane}/{kind}/", f"l/{lane}/{kind}/{END}", -1)

    count: Counter[str] = Counter()
    settled = {key.rpartition("/")[2]: blocks.mask_of(disk.get(key) or b"") for key in keys("d")}
    for key in keys("b"):
        events = blocks.head(disk.get(key) or b"")[0]
        mask = settled.pop(key.rpartition("/")[2], 0)
        if mask >= (1 << events) - 1:  # not what was ever written: to deliver again is better than never
            disk.delete(f"l/{lane}/d/{key.rpartition('/')[2]}")
            mask = 0
        count["waiting"] += events - mask.bit_count()
    for orphan in settled:
        disk.delete(f"l/{lane}/d/{orphan}")
    count["parked"] = sum(blocks.head(disk.get(key) or b"")[0] for key in keys("p"))
    damaged = sum(int.from_bytes((disk.get(key) or b"")[:4], "big") for key in keys("q"))
    letters, there = len(keys("x")), count["waiting"] + count["parked"]
    stored = disk.get(f"l/{lane}/n")
    said = known or (None if stored is None else msgspec.msgpack.decode(stored, type=Books))
    before = said or Books(there + letters + damaged, pending=there, dead=letters + damaged)
    lost = max(0, before.pending - there)
    dead = max(before.dead + lost, letters + before.purged + damaged)
    gone = dead - before.purged - damaged - letters
    # What is there beyond what the books say is delivered again.
    delivered = max(0, before.accepted - dead - before.dropped - there)
    balanced = Books(
        delivered + dead + before.dropped + there, delivered, dead, before.dropped, there, before.purged
    )
    if gone:
        disk.set(f"l/{lane}/q/{mark}", gone.to_bytes(4, "big"))
    disk.set(f"l/{lane}/n", msgspec.msgpack.encode(balanced))
    disk.set(f"l/{lane}/k", count["parked"].to_bytes(8, "big"))
    return there, None if said is None else gone


def _number(key: str) -> int:
    try:
        return max(int(part, 16) for part in key.rpartition("/")[2].split("-"))
    except (ValueError, SpoolCorrupt):
        return 0


def _write(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
