"""The durable queue of one process: the only thing that intake and courier share."""

from per_agent.spool.block import Block, BlockId
from per_agent.spool.folder import Claim, abandoned, claim, held, own, spools
from per_agent.spool.records import DeadLetter, FiledLetter, Parking, Settlement
from per_agent.spool.spooler import Source, Spool
from per_agent.spool.store import Store, Transaction

__all__ = [
    "Block",
    "BlockId",
    "Claim",
    "DeadLetter",
    "FiledLetter",
    "Parking",
    "Settlement",
    "Source",
    "Spool",
    "Store",
    "Transaction",
    "abandoned",
    "claim",
    "held",
    "own",
    "spools",
]
