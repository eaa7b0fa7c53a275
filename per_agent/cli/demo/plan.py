"""The demo's events: drawn from a seed, so that whoever knows it knows them all, identifiers included."""

import random
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Final

import msgspec

METER: Final = "demo.tokens"

_CUSTOMERS: Final = ("acme", "globex", "initech", "umbrella")
_ACTIVITIES: Final = ("active-users", "exports")
_USERS: Final = 300  # of each customer
_METERED: Final = 3  # one event in so many is a meter event


class Plan(msgspec.Struct, frozen=True):
    """The events of one demo: *events* of them, all since *begin* in epoch seconds."""

    seed: int
    events: int
    begin: float

    def records(self) -> Iterator[dict[str, Any]]:
        """All events, as `Agent.add_record` takes them."""
        draw = random.Random(self.seed)  # noqa: S311  (data for a demo)
        for number in range(self.events):
            customer, name = draw.choice(_CUSTOMERS), f"demo-{self.seed}-{number:07d}"
            if number % _METERED == 0:
                yield {
                    "event_name": METER,
                    "identifier": name,
                    "customer_id": customer,
                    "value": f"{draw.randrange(1, 5000)}.{draw.randrange(1000):03d}",
                    "timestamp": self.begin,
                }
            else:
                yield {
                    "id": name,
                    "billing_id": customer,
                    "user_id": f"user-{draw.randrange(_USERS)}",
                    "activity_type_id": draw.choice(_ACTIVITIES),
                    "at": self.begin,
                }

    def unique_users(self) -> list[tuple[str, str, int]]:
        """(activity type, billing ID, unique users): what the report must say."""
        users: dict[tuple[str, str], set[str]] = {}
        for record in self.records():
            if "user_id" in record:
                users.setdefault((record["activity_type_id"], record["billing_id"]), set()).add(
                    record["user_id"]
                )
        return sorted((*pair, len(them)) for pair, them in users.items())

    def usage(self) -> tuple[int, Decimal]:
        """How many meter events there are, and the sum of their values: what the meter must say."""
        values = [Decimal(record["value"]) for record in self.records() if "value" in record]
        return len(values), sum(values, Decimal())


def identifier(record: dict[str, Any]) -> str:
    """The identifier of one of the plan's records."""
    name: str = record["identifier"] if "identifier" in record else record["id"]
    return name
