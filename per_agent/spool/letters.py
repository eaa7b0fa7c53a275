"""Dead letters as work: list them, send them again, delete them, whoever holds the spool that they lie in.

Only a spool's holder may change it. A spool that nobody holds is taken for the moment of the change. To one
that a running process holds, a request is handed as a small file in its folder; the holder looks there every
second, makes the change in its own way, and leaves the answer beside it. A request is safe to repeat: what
is no longer there is not requeued again.
"""

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal
from uuid import uuid4

import msgspec

from per_agent import failpoint, files
from per_agent.errors import SpoolError
from per_agent.event import Progress
from per_agent.settings import IntakeSettings, SpoolSettings
from per_agent.spool import audit, filed, folder
from per_agent.spool.records import FiledLetter
from per_agent.spool.spool import Spool
from per_agent.spool.transaction import Transaction

_ANSWER_TIMEOUT: Final = 15.0  # seconds; a holder looks every second, and may be busy with a slow disk
_LOOK_EVERY: Final = 0.05  # seconds between looks for the answer
_AT_ONCE: Final = 1000  # letters in one change, so that no commit grows without bound
_REQUESTS: Final = "requests"
_LONGEST: Final = 64 * 1024  # bytes of a request or an answer; each of its letters takes up to 20


class _Request(msgspec.Struct, frozen=True):
    what: Literal["requeue", "purge"]
    lane: str
    numbers: list[int]

    def apply(self, changes: Transaction) -> int:
        if self.what == "requeue":
            return sum(block.count for block in changes.requeue(self.lane, self.numbers))
        return changes.purge(self.lane, self.numbers)


class DeadLetters:
    """The dead letters of all spools under a data folder. For any process, beside running agents."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    def __iter__(self) -> Iterator[FiledLetter]:
        """All letters, spool by spool, lane by lane, oldest first in each lane.

        Raises `SpoolError` when a spool cannot be read.
        """
        return self.after("", "", 0)

    def after(self, spool: str, lane: str, number: int) -> Iterator[FiledLetter]:
        """The letters that follow the place of one, in the order of all. New ones come to the end of their lane."""
        for snapshot in audit.snapshots(self._data_dir):
            if snapshot.id == spool:
                yield from filed.letters(snapshot.folder, lane, number)
            elif snapshot.id > spool:
                yield from filed.letters(snapshot.folder)

    def requeue(self, letters: Iterable[FiledLetter]) -> int:
        """Send *letters* again, each under its identifier. Returns how many were still there.

        Raises `SpoolError` when a process holds their spool and does not answer.
        """
        return self._change("requeue", letters)

    def purge(self, letters: Iterable[FiledLetter]) -> int:
        """Delete *letters* for good; the books count them as purged. Raises as `requeue` does."""
        return self._change("purge", letters)

    def _change(self, what: Literal["requeue", "purge"], letters: Iterable[FiledLetter]) -> int:
        by_lane: dict[tuple[str, str], list[int]] = {}
        for letter in letters:
            by_lane.setdefault((letter.spool, letter.lane), []).append(letter.number)
        return sum(
            self._ask(self._data_dir / "spools" / spool, _Request(what, lane, numbers[at : at + _AT_ONCE]))
            for (spool, lane), numbers in by_lane.items()
            for at in range(0, len(numbers), _AT_ONCE)
        )

    def _ask(self, place: Path, request: _Request) -> int:
        taken = folder.claim(place)
        return _ask_holder(place, request) if taken is None else _change_abandoned(taken, request)


def _change_abandoned(taken: folder.Claim, request: _Request) -> int:
    spool = Spool(
        lambda _: taken, None, Progress(lambda: None), intake=IntakeSettings(), settings=SpoolSettings()
    )
    spool.start()
    try:
        spool.wait_opened()
        changed: int = spool.run(request.apply)
        return changed
    finally:
        spool.stop(None)


def _ask_holder(place: Path, request: _Request) -> int:
    name = place / _REQUESTS / uuid4().hex
    asked, answered = name.with_suffix(".ask"), name.with_suffix(".answer")
    try:
        _make_requests(place)
        _write(asked, msgspec.json.encode(request))
        failpoint.reach("letters asked")
    except FileNotFoundError:
        return 0  # the spool was absorbed and removed just now: it held no letters
    except OSError as error:
        raise SpoolError(f"{place}: its holder cannot be asked: {error.strerror}") from error
    deadline = time.monotonic() + _ANSWER_TIMEOUT
    while not answered.exists():
        if not place.exists():
            return 0  # it was absorbed and removed after it was asked
        if time.monotonic() > deadline:
            asked.unlink(missing_ok=True)
            raise SpoolError(
                f"{place}: the process that holds this spool does not answer; is it stopped or wedged?"
            )
        time.sleep(_LOOK_EVERY)
    try:
        changed: int = msgspec.json.decode(files.read(answered, _LONGEST), type=int)
    except (OSError, msgspec.MsgspecError) as error:
        raise SpoolError(f"{answered}: is no answer: {error}") from error
    failpoint.reach("answer fetched")
    answered.unlink(missing_ok=True)
    return changed


def _make_requests(place: Path) -> None:
    """Make the folder of the requests; the holder's, where root asks: else the holder could not look into it."""
    requests = place / _REQUESTS
    with suppress(FileExistsError):
        requests.mkdir(mode=0o700)
    if requests.is_symlink():
        raise OSError(errno.ELOOP, "the folder of the requests is a symbolic link: remove it", str(requests))
    if os.geteuid() == 0:  # also where it was there: its maker may have died over it
        owner = place.stat()
        os.chown(requests, owner.st_uid, owner.st_gid, follow_symlinks=False)


def answer_requests(
    place: Path, post: Callable[[Callable[[Transaction], Any], Callable[[Any], None]], None]
) -> None:
    """The holder's side: have *post* make the changes that are asked for in the spool's folder."""
    requests = place / _REQUESTS
    try:
        found = [] if requests.is_symlink() else list(requests.iterdir())
    except OSError:
        return  # nobody ever asked, or it is another user's folder, which cannot be answered
    for asked in found:
        if asked.suffix != ".ask":
            continue
        taken = asked.with_suffix(".taken")
        try:
            asked.rename(taken)  # so that the next look does not find it again
            failpoint.reach("letters taken")
            request = msgspec.json.decode(files.read(taken, _LONGEST), type=_Request)
        except (OSError, msgspec.MsgspecError):
            continue

        def answer(changed: int, taken: Path = taken) -> None:
            with suppress(OSError):  # the folder is gone or the disk is full: who asked gives up by the clock
                _write(taken.with_suffix(".answer"), msgspec.json.encode(changed))
                failpoint.reach("letters answered")
                taken.unlink()

        post(request.apply, answer)


def _write(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, and belongs to the owner of its folder."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(files.create(partial), "wb") as file:
        if os.geteuid() == 0:  # who is to read it may be another user
            owner = path.parent.stat()
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        file.write(content)
    failpoint.reach("file half written")
    partial.rename(path)
