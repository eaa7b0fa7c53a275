"""Which abandoned spools an agent may take: as its own when it starts, or to deliver what is in them.

A spool whose pending events go to a destination that this agent does not have is left alone: it belongs to
an agent with another configuration, or to one that is still to come. So is one of
a newer version, or of another user: it must not keep the others from being looked after.
"""

from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from per_agent import failpoint, journal
from per_agent.errors import SpoolError
from per_agent.spool import audit, folder, forks, trust
from per_agent.spool.folder import Claim


def own(data_dir: Path, lanes: Collection[str], unusable: Collection[str] = ()) -> Claim:
    """An abandoned spool other than those named *unusable*, or a new one, for an agent with destinations *lanes*.

    Raises `SpoolError` when the data folder cannot be used.
    """
    try:
        folder.prepare(data_dir)
        taken = next(abandoned(data_dir, lanes, unusable), None) or folder.create(data_dir)
    except OSError as error:
        raise SpoolError(f"{data_dir}: cannot keep a spool here: {error.strerror or error}") from error
    take_journals(data_dir, lanes, taken.folder)
    return taken


def take_journals(data_dir: Path, lanes: Collection[str], place: Path) -> list[Path]:
    """Move into *place*, a held spool's folder, what processes left that died before they had a spool.

    Those that *lanes* can drain; to be recovered there. Returns where they lie now.
    """
    with forks.section():  # a child that is forked meanwhile would inherit the locks, and keep them
        return [
            taken
            for path in journal.abandoned(data_dir / journal.FOLDER)
            if journal.pending(path).keys() <= set(lanes) and (taken := journal.take(path, place)) is not None
        ]


def abandoned(data_dir: Path, lanes: Collection[str], unusable: Collection[str] = ()) -> Iterator[Claim]:
    """Take the spools that nobody holds and that *lanes* can drain, one by one as the iteration goes."""
    folder.sweep(data_dir)
    for place in folder.spools(data_dir):
        if place.name in unusable:
            continue
        taken = folder.claim(place)
        if taken is None:
            reason = trust.problem(place)
            if reason is not None:
                trust.tell(place, reason)
            continue
        counted_elsewhere = audit.absorbed(data_dir)
        pending = audit.pending(place)
        if counted_elsewhere is None:
            taken.release()
        elif pending is None:
            if audit.damaged(place):
                yield taken  # whoever opens it sets the damage aside, whatever it is that can be salvaged
            else:
                taken.release()
        elif taken.id in counted_elsewhere and not (pending or journal.files(place)):
            # Its books were carried over by a process that died before it could do this. It may have been used
            # since, by a process that could not read of that: what is in it then is not to go with it.
            if audit.drained(place):
                with suppress(OSError):
                    taken.remove()
            taken.release()
        elif (pending.keys() | _in_journals(place)) <= set(lanes):
            failpoint.reach("lane adopted")
            yield taken
        else:
            taken.release()


def _in_journals(place: Path) -> set[str]:
    """The lanes of events that the journals in the spool's folder *place* hold."""
    return {lane for path in journal.files(place) for lane in journal.pending(path)}


def still_there(data_dir: Path, spool: str) -> bool:
    """Whether the folder of *spool* exists."""
    return (data_dir / "spools" / spool).exists()
