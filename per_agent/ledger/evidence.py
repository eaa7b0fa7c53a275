"""What is counted, by identifier: the evidence that no event is missing and none is there twice."""

from collections.abc import Iterable

from per_agent.ledger.database import Database
from per_agent.ledger.identifier import already, pack


def counted(database: Database, identifiers: Iterable[str]) -> set[str]:
    """Those of *identifiers* that are counted, as an activity or as a meter event. Raises `Unavailable`."""
    packed = {pack(identifier): identifier for identifier in identifiers}
    found = database.read(
        "GET /v1/events",
        lambda connection: (
            already(connection, "activity_identifier", packed) | already(connection, "meter_event", packed)
        ),
    )
    return {packed[key] for key in found}


def totals(database: Database) -> tuple[int, int]:
    """How many activities and how many meter events are counted. Raises `Unavailable`."""
    counts: tuple[int, int] = database.read(
        "GET /v1/events",
        lambda connection: connection.execute(
            "SELECT (SELECT count(*) FROM activity_identifier), (SELECT count(*) FROM meter_event)"
        ).fetchone(),
    )
    return counts
