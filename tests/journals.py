"""Journals as the intake makes and fills them, without an intake."""

from pathlib import Path

from per_agent import journal
from per_agent.event import Identifiers
from per_agent.journal import Journal, Place

_identifiers = Identifiers()


def make(data_dir: Path, events: int) -> Journal:
    return journal.make(data_dir, events, _identifiers)


def write(made: Journal, encoded: bytes, lanes: tuple[str, ...]) -> Place:
    return made.write(encoded, lanes, _identifiers.number())
