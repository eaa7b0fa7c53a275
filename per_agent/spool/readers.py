"""Questions for the blocks of a lane: answered from the disk, or from memory where the asker is caught up."""

from per_agent.log import Log
from per_agent.spool.block import Block, BlockId
from per_agent.spool.store import STORAGE_TROUBLE, Store
from per_agent.spool.trouble import Trouble
from per_agent.spool.work import Head, Work, nothing


class Readers:
    """The open questions, at most one for each lane. For the spooler's thread."""

    def __init__(self, works: list[Work], disk: Trouble) -> None:
        self._works = works
        self._disk = disk
        self._open: dict[str, Head] = {}
        self._caught_up: set[str] = set()  # the lanes that were answered since the store was opened

    def begin_anew(self) -> None:
        """Another store was opened, perhaps with blocks in it that the one before did not show: miss none of them."""
        self._caught_up.clear()

    def answer(self, asked: Head, store: Store | None) -> None:
        """Reply with what there is on the disk, or keep the question until there is something."""
        self._open[asked.lane] = asked
        if store is None:
            return  # it is not open yet
        try:
            after = asked.after if asked.lane in self._caught_up else None
            found, damaged = store.head(asked.lane, after, asked.limit)
            self._caught_up.add(asked.lane)
        except STORAGE_TROUBLE as error:
            self._disk.met(error)
            self._works.append(Work(nothing, nothing, nothing, stirs=True))  # asks again after a good commit
            return
        for block_id in damaged:
            self._set_aside(asked.lane, block_id)
        if found:
            del self._open[asked.lane]
            asked.reply(found)

    def feed(self, fresh: list[Block], store: Store | None, *, stirred: bool) -> None:
        """Answer what can be answered after a commit that added *fresh*, and where it *stirred* other blocks, too."""
        if not self._open:
            return
        if stirred:
            for reader in list(self._open.values()):
                self.answer(reader, store)
        new: dict[str, list[Block]] = {}
        for block in fresh:
            new.setdefault(block.lane, []).append(block)
        for lane, some in new.items():
            waiting = self._open.pop(lane, None)
            if waiting is not None:
                # It was caught up with the disk, so these are the next ones: no need to read them back.
                waiting.reply(some[: waiting.limit])

    def _set_aside(self, lane: str, block_id: BlockId | str) -> None:
        def tell(lost: int) -> None:
            Log().error("a damaged block was set aside", lane=lane, block=str(block_id), events_lost=lost)

        self._works.append(Work(lambda changes: changes.set_aside(lane, block_id), tell, nothing, stirs=True))
