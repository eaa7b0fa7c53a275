"""Dead letters that are sent again: each is delivered, refused again, or waits."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from per_agent.agent.letters import Choice
from per_agent.cli.call import running
from per_agent.cli.following import Following
from per_agent.cli.sidecar import Sidecar
from per_agent.settings import Settings
from per_agent.spool import DeadLetters, FiledLetter, Lane, snapshots

_LOOK_EVERY: Final = 0.1  # seconds
_ADOPT_EVERY: Final = 0.5  # seconds: this agent is here to take abandoned spools over
_AT_ONCE: Final = 2000  # letters named in one request, so that it stays below what a sidecar takes


class Resent(msgspec.Struct, frozen=True, kw_only=True):
    """What became of letters that were sent again: each is delivered, dead again or still waiting."""

    requeued: int
    delivered: int
    dead_again: int
    waiting: int
    with_running_agents: int
    """Those in spools that a running process holds."""


def resend(
    data_dir: Path, letters: Sequence[FiledLetter], settings: Settings | None, timeout: float
) -> Resent:
    """Requeue *letters*, and watch for up to *timeout* seconds what becomes of them.

    Where nobody holds their spools, an agent of *settings* delivers them meanwhile; without *settings* none
    does, and nothing is waited for. Raises `SpoolError` when a process holds a spool and does not answer.
    """
    before = _lanes(data_dir)
    spools = {each.spool for each in letters}
    held = {each.id for each in snapshots(data_dir) if each.held and each.id in spools}
    requeued = DeadLetters(data_dir).requeue(letters)
    at = time.time()
    watched = {(each.spool, each.lane) for each in letters}
    with ExitStack() as stack:
        if settings is not None and spools - held and timeout > 0:
            spool = msgspec.structs.replace(settings.spool, adopt_interval=_ADOPT_EVERY)
            stack.enter_context(running(msgspec.structs.replace(settings, spool=spool)))
        waiting = _watch(data_dir, watched, before, at, timeout if settings is not None else 0.0)
    sent = {_key(each) for each in letters}
    dead_again = min(requeued, sum(_key(filed) in sent for filed in DeadLetters(data_dir)))
    waiting = min(waiting, requeued - dead_again)
    return Resent(
        requeued=requeued,
        delivered=requeued - dead_again - waiting,
        dead_again=dead_again,
        waiting=waiting,
        with_running_agents=sum(each.spool in held for each in letters),
    )


def resend_there(
    sidecar: Sidecar, choice: Choice, chosen: Sequence[dict[str, Any]], timeout: float
) -> Resent:
    """As `resend`: the *sidecar* requeues *chosen*, which are letters that *choice* gave, and delivers them."""
    before = sidecar.status()
    requeued = change_there(sidecar, "requeue", choice, chosen)
    following = Following(sidecar, before, {each["destination"] for each in chosen})
    left = following.wait(lambda left: not left.waiting, timeout)
    sent = {(each["destination"], each["id"]) for each in chosen}
    again = sum((each["destination"], each["id"]) in sent for each in sidecar.letters(Choice(ids=choice.ids)))
    dead_again = min(requeued, again)
    waiting = min(left.waiting + left.parked, requeued - dead_again)
    return Resent(
        requeued=requeued,
        delivered=requeued - dead_again - waiting,
        dead_again=dead_again,
        waiting=waiting,
        with_running_agents=requeued,
    )


def change_there(
    sidecar: Sidecar, what: Literal["requeue", "purge"], choice: Choice, chosen: Sequence[dict[str, Any]]
) -> int:
    """Have the *sidecar* requeue or purge *chosen*, and no letter that came since. Gives how many it did.

    A letter that this version cannot read has no identifier to name it by; with one among them it is all
    letters that *choice* means by now.
    """
    ids = [each["id"] for each in chosen]
    if None in ids:
        return sidecar.change(what, choice, [])
    return sum(sidecar.change(what, choice, ids[at : at + _AT_ONCE]) for at in range(0, len(ids), _AT_ONCE))


_Watched = set[tuple[str, str]]
_Lanes = dict[tuple[str, str], Lane]


def _watch(data_dir: Path, watched: _Watched, before: _Lanes, at: float, timeout: float) -> int:
    """Wait until what was requeued up to *at* has been decided. Returns how many events have not."""
    deadline = time.monotonic() + timeout
    while True:
        lanes = _lanes(data_dir)
        undecided = [(lanes[each], before.get(each)) for each in watched if each in lanes]
        waiting = sum(lane.waiting for lane, _ in undecided if lane.oldest is not None and lane.oldest <= at)
        if not waiting or time.monotonic() >= deadline:
            parked = sum(lane.parked - (was.parked if was else 0) for lane, was in undecided)
            return waiting + max(0, parked)
        time.sleep(_LOOK_EVERY)


def _lanes(data_dir: Path) -> _Lanes:
    return {(spool.id, name): lane for spool in snapshots(data_dir) for name, lane in spool.lanes.items()}


def _key(filed: FiledLetter) -> bytes:
    return blake2b(filed.letter.event, digest_size=16, person=filed.lane.encode()[:16]).digest()
