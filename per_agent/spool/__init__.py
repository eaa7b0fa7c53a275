"""The durable queue of one process: the only thing that intake and courier share."""

from per_agent.spool.adoption import abandoned, own, still_there, take_journals
from per_agent.spool.audit import Snapshot, snapshots, survey
from per_agent.spool.block import Block, BlockId
from per_agent.spool.folder import Claim
from per_agent.spool.inflow import by_lane
from per_agent.spool.journaled import loose
from per_agent.spool.lanes import Lane
from per_agent.spool.letters import DeadLetters, answer_requests
from per_agent.spool.records import DeadLetter, FiledLetter, Parking, Settlement
from per_agent.spool.salvage import reports
from per_agent.spool.spool import Spool
from per_agent.spool.statistics import SpoolStatistics
from per_agent.spool.store import Store
from per_agent.spool.transaction import Transaction
from per_agent.spool.work import Source

__all__ = [
    "Block",
    "BlockId",
    "Claim",
    "DeadLetter",
    "DeadLetters",
    "FiledLetter",
    "Lane",
    "Parking",
    "Settlement",
    "Snapshot",
    "Source",
    "Spool",
    "SpoolStatistics",
    "Store",
    "Transaction",
    "abandoned",
    "answer_requests",
    "by_lane",
    "loose",
    "own",
    "reports",
    "snapshots",
    "still_there",
    "survey",
    "take_journals",
]
