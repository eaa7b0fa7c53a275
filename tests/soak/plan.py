"""What each event is: its whole content follows from its name and the seed, so everybody knows what it must be.

A name is `GROUP SLOT . LIFE . THREAD . NUMBER`, such as `a1.3.0.17`. The group says which way it takes:
`a` producers on one data folder, `b` clients of the sidecar that is struck, `c` a producer that delivers to that
sidecar, `d` clients of the sidecar that lives on. Threads from `CALM` on record no poison.
"""

import json
import re
from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Final

CALM: Final = 90
THREADS: Final = 100  # the most that a producer has, calm ones included
METERS: Final = ("calls", "tokens", "sleepy")
NAME: Final = re.compile(r"([abcd])(\d+)\.(\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True)
class Planned:
    """One event. `identifier` and `at` are None where the agent is to choose them.

    `content` is all of it but those two, in the form that both kinds of places are compared in.
    """

    name: str
    kind: str  # "activity" or "meter"
    identifier: str | None
    at: float | None
    poison: bool
    fields: dict[str, Any]

    @property
    def digest(self) -> str:
        return digest(self.fields)


def event(seed: int, name: str) -> Planned:
    """The event of that *name*."""
    found = NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"not a name: {name!r}")
    draw = int.from_bytes(blake2b(f"{seed}/{name}".encode(), digest_size=24).digest(), "big")

    def pick(of: int) -> int:
        nonlocal draw
        draw, chosen = divmod(draw, of)
        return chosen

    poison = pick(200) == 0 and int(found[4]) < CALM
    at = None if pick(2) else 1_700_000_000 + pick(10_000_000) + pick(1000) / 1000
    # Over HTTP a client that repeats itself must name its events.
    named = pick(2) == 0 or found[1] in "bd"
    if pick(2):
        fields: dict[str, Any] = {"billing": f"customer {pick(5)}", "type": f"kind-{pick(3)}"}
        return Planned(name, "activity", None, at, poison, fields)
    metadata: dict[str, Any] = {"name": name, "exact": pick(10**9) / 1000, "ünï/cødé": ["☃", None, True]}
    if pick(40) == 0:
        metadata["long"] = "x" * (3000 + pick(3000))
    fields = {
        "event_name": METERS[2] if pick(8) == 0 else METERS[pick(2)],
        "customer": f"cus_{pick(37)}",
        "subscription": f"sub_{pick(9)}" if pick(2) else None,
        "value": (
            "0.1", str(pick(1000)), f"{pick(10**6)}.{pick(10**6):06d}", f"{pick(10**12)}000000.000000000001"
        )[pick(4)],
        "metadata": metadata,
        "source_data": [{"n": pick(100)}] if pick(3) == 0 else None,
        "livemode": pick(6) != 0,
    }  # fmt: skip
    return Planned(name, "meter", name if named else None, at, poison, fields)


def digest(fields: Any) -> str:
    """Of content, whatever the order of its keys; numbers as they are written."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), default=str)
    return blake2b(text.encode(), digest_size=12).hexdigest()


def parsed(text: str | bytes | None) -> Any:
    """JSON whose fractions compare exactly as planned ones do."""
    return None if text is None else json.loads(text, parse_float=_written)


def _written(number: str) -> Any:
    exact = float(number)
    return exact if Decimal(repr(exact)) == Decimal(number) else number


def record(planned: Planned) -> dict[str, Any]:
    """The event as a JSON record, for a sidecar's `POST /v1/events`."""
    fields = planned.fields
    if planned.kind == "activity":
        made = {
            "id": planned.name,
            "billing_id": fields["billing"],
            "user_id": planned.name,
            "activity_type_id": fields["type"],
            "at": planned.at,
        }
    else:
        made = {
            "event_name": fields["event_name"],
            "identifier": planned.identifier,
            "customer_id": fields["customer"],
            "subscription_id": fields["subscription"],
            "value": fields["value"],
            "timestamp": planned.at,
            "metadata": fields["metadata"],
            "source_data": fields["source_data"],
            "livemode": fields["livemode"],
        }
    return {name: value for name, value in made.items() if value is not None}
