"""What a running agent takes over from other settings, and what of them needs a restart.

Credentials, the time that a request may take, and the tunables of delivering and of storing can change under
way. What decides where events lie or go cannot: an event's lane is for life.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from per_agent.agent.build import destination_of
from per_agent.destinations import Destination
from per_agent.destinations.payment_kit import PaymentKit
from per_agent.destinations.per import Per
from per_agent.destinations.sidecar import Sidecar
from per_agent.settings import (
    DestinationSettings,
    PaymentKitSettings,
    PerSettings,
    Settings,
    SidecarDestinationSettings,
)

_Section = TypeVar("_Section", bound=msgspec.Struct)

_SECTIONS: Final[Mapping[str, frozenset[str]]] = {
    "agent": frozenset({"exit_timeout"}),
    "intake": frozenset({"linger", "block_events"}),
    "spool": frozenset(),
    "delivery": frozenset(
        {
            "backoff_initial",
            "backoff_max",
            "retry_after_max",
            "probe_interval",
            "refusal_attempts",
            "window_blocks",
        }
    ),
}
"""For each section, what of it can change under way."""
_CREDENTIALS: Final = frozenset({"activity_token", "reporting_token", "access_key", "token", "timeout"})


class Plan(msgspec.Struct, frozen=True):
    """What is to be done.

    Attributes:
        settings: those that are in force afterwards: the new ones, less what needs a restart.
        restart: the dotted names of what differs and needs one.
        mended: the names of destinations whose credentials or bounds change.
    """

    settings: Settings
    restart: list[str]
    mended: frozenset[str]

    def apply(self, destinations: Iterable[Destination]) -> None:
        """Give *destinations* their new credentials. Raises `ConfigError`, and then nothing has changed."""
        for name in self.mended:
            destination_of(name, self.settings.destinations[name])  # raises what `authorize` would
        for destination in destinations:
            if destination.name in self.mended:
                _authorize(destination, self.settings.destinations[destination.name])


def plan(before: Settings, after: Settings) -> Plan:
    """What to take over from *after* where *before* is in force. Changes nothing."""
    restart: list[str] = []
    sections: dict[str, Any] = {
        name: _merged(name, getattr(before, name), getattr(after, name), tunable, restart)
        for name, tunable in _SECTIONS.items()
    }
    destinations = dict(before.destinations)
    for name in dict.fromkeys([*before.destinations, *after.destinations]):
        old, new = before.destinations.get(name), after.destinations.get(name)
        if old is None or new is None:
            restart.append(f"destinations.{name}")
        elif type(old) is not type(new):
            restart.append(f"destinations.{name}.type")
        else:
            destinations[name] = _merged(f"destinations.{name}", old, new, _CREDENTIALS, restart)
    mended = frozenset(name for name, old in before.destinations.items() if destinations[name] != old)
    settings = msgspec.structs.replace(after, **sections, destinations=destinations)
    return Plan(settings, restart, mended)


def _merged(
    section: str, before: _Section, after: _Section, tunable: Collection[str], restart: list[str]
) -> _Section:
    """*before* with what is *tunable* of *after*; what else differs is added to *restart*."""
    differing = [name for name in before.__struct_fields__ if getattr(before, name) != getattr(after, name)]
    restart += (f"{section}.{name}" for name in differing if name not in tunable)
    return msgspec.structs.replace(
        before, **{name: getattr(after, name) for name in differing if name in tunable}
    )


def _authorize(destination: Destination, settings: DestinationSettings) -> None:
    match destination, settings:
        case Per(), PerSettings():
            reporting = settings.reporting_token
            destination.authorize(
                settings.activity_token.reveal(),
                None if reporting is None else reporting.reveal(),
                timeout=settings.timeout,
            )
        case PaymentKit(), PaymentKitSettings():
            destination.authorize(settings.access_key.reveal(), timeout=settings.timeout)
        case Sidecar(), SidecarDestinationSettings():
            token = None if settings.token is None else settings.token.reveal()
            destination.authorize(token, timeout=settings.timeout)
